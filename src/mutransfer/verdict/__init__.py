"""The transfer verdict: do the best hyperparameters of the smallest size serve the larger ones, and what does it cost if not?"""

from mutransfer.verdict.estimate import Estimate
from mutransfer.verdict.transfer import Gain, Optimum, Regret
from mutransfer.verdict.verdict import Verdict, transfer_verdict, transfer_verdicts

__all__ = ["Estimate", "Gain", "Optimum", "Regret", "Verdict", "transfer_verdict", "transfer_verdicts"]
