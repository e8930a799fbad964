"""Pairs of answers to measure, and others to fit to."""

PAIRS = [
    {"prompt": "Hello there", "positive": "I love this, my friend.", "negative": "I hate this."},
    {"prompt": "How are you?", "positive": "What a joy", "negative": "What a great pain it is"},
    {"prompt": "Is it late?", "positive": "Late it is, my friend.", "negative": "Yes."},
]
TRAIN = [one | {"prompt": f"{one['prompt']} Tell me."} for one in PAIRS]
