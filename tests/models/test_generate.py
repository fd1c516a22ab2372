"""Generation: what it repeats, what it draws, what it leaves untouched, what it refuses."""

import pytest
import torch

from mutransfer.errors import InputError
from mutransfer.models import GPT, GPTConfig, generate, gpt_loss

TEXT = "to be or not to be, that is the question: "
LETTERS = sorted(set(TEXT))


def encode(text: str) -> torch.Tensor:
    return torch.tensor([[LETTERS.index(letter) for letter in text]])


def decode(ids: torch.Tensor) -> str:
    return "".join(LETTERS[i] for i in ids[0].tolist())


@pytest.fixture(scope="module", params=["learned", "rotary"])
def trained(request) -> GPT:
    """A width-32 GPT that has memorised the text: windows of every phase, 150 steps."""
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size=len(LETTERS), context=32, width=32, depth=2, head_size=8, positions=request.param, init_std=0.1
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stream = encode(TEXT * 3)[0]
    windows = stream.unfold(0, 33, 1)[: len(TEXT)]
    for _ in range(150):
        optimizer.zero_grad()
        loss = gpt_loss(model, (windows[:, :-1], windows[:, 1:]))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    return model


def random_model(**fields) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=50, context=8, width=16, depth=1, head_size=8, **fields))


def test_greedy_text_repeats_the_memorised_string_beyond_the_context(trained):
    start = 12
    text = decode(generate(trained, encode(TEXT[:start]), tokens=80, temperature=0))
    assert text == (TEXT * 3)[: start + 80]


def test_top_1_and_a_low_temperature_are_greedy(trained):
    greedy = generate(trained, encode("to be"), 20, temperature=0)
    assert torch.equal(generate(trained, encode("to be"), 20, top_k=1), greedy)
    assert torch.equal(generate(trained, encode("to be"), 20, temperature=1e-3), greedy)


def test_a_batch_continues_each_row_on_its_own(trained):
    prompts = torch.cat((encode("to be"), encode("quest")))
    rows = generate(trained, prompts, 20, temperature=0)
    for i in range(2):
        assert torch.equal(rows[i : i + 1], generate(trained, prompts[i : i + 1], 20, temperature=0))


def test_the_seed_alone_decides_the_text():
    model, prompt = random_model(), torch.zeros(1, 1, dtype=torch.int64)
    torch.manual_seed(1)
    a = generate(model, prompt, 30, seed=5)
    torch.manual_seed(2)
    assert torch.equal(a, generate(model, prompt, 30, seed=5))
    assert not torch.equal(a, generate(model, prompt, 30, seed=6))


def test_the_global_random_state_and_the_mode_are_untouched():
    model, prompt = random_model(dropout=0.5), torch.zeros(1, 1, dtype=torch.int64)
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        generate(model, prompt, 5)
        assert model.training == training
    assert torch.equal(state, torch.get_rng_state())


def test_samples_follow_the_softmax_and_stay_in_the_top_k():
    model, prompt = random_model(init_std=0.5), torch.zeros(4000, 1, dtype=torch.int64)
    logits = model(prompt[:1])[0, -1].detach()
    drawn = generate(model, prompt, 1, temperature=2.0)[:, 1]
    frequency = drawn.bincount(minlength=50) / 4000
    assert (frequency - (logits / 2).softmax(0)).abs().max() < 0.03
    best = set(logits.topk(3).indices.tolist())
    assert set(generate(model, prompt, 1, top_k=3)[:, 1].tolist()) == best


def test_a_hook_on_the_head_is_felt():
    """A forward multiplier that lives in a hook must not be forgotten when sampling."""
    model, prompt = random_model(init_std=0.5), torch.zeros(1, 1, dtype=torch.int64)
    before = generate(model, prompt, 1, temperature=0)
    model.head.register_forward_hook(lambda module, args, output: -output)
    assert not torch.equal(generate(model, prompt, 1, temperature=0), before)


def test_zero_tokens_is_the_prompt():
    prompt = torch.tensor([[1, 2, 3]])
    assert torch.equal(generate(random_model(), prompt, 0), prompt)


@pytest.mark.parametrize(
    ("prompt", "arguments", "words"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), {}, "time >= 1"),
        (torch.zeros(3, dtype=torch.int64), {}, r"shape \(3,\)"),
        (torch.zeros(1, 3), {}, "float32"),
        (torch.tensor([[50]]), {}, "vocab_size=50"),
        (torch.tensor([[-1]]), {}, "-1"),
        (torch.tensor([[1]]), {"tokens": -1}, "tokens=-1"),
        (torch.tensor([[1]]), {"temperature": -1.0}, "temperature=-1.0"),
        (torch.tensor([[1]]), {"temperature": float("nan")}, "temperature=nan"),
        (torch.tensor([[1]]), {"top_k": 0}, "top_k=0"),
        (torch.tensor([[1]]), {"top_k": 51}, "vocab_size=50"),
    ],
    ids=str,
)
def test_wrong_argument_is_one_clear_line(prompt, arguments, words):
    with pytest.raises(InputError, match=words):
        generate(random_model(), prompt, **{"tokens": 1, **arguments})


def test_a_diverged_model_is_named_so():
    model = random_model()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="diverged"):
        generate(model, torch.tensor([[1]]), 1)
