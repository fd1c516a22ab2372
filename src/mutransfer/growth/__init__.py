"""Growing: the big model started from the small one, weights and optimizer state, exact up to the noise that is asked for."""
