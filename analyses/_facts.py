"""Facts with an answer of one word, by family, written for the study of lenses."""

from __future__ import annotations

#: by family: the text, and the answer of each word put into it
FACTS: dict[str, tuple[str, dict[str, str]]] = {
    "capitals": ("The capital of {} is", {
        "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Japan": "Tokyo",
        "England": "London", "Egypt": "Cairo", "Greece": "Athens", "Russia": "Moscow", "Portugal": "Lisbon",
        "Austria": "Vienna", "Ireland": "Dublin", "Poland": "Warsaw", "Cuba": "Havana", "Turkey": "Ankara",
    }),
    "languages": ("The people of {} speak", {
        "France": "French", "Italy": "Italian", "Germany": "German", "Spain": "Spanish", "Japan": "Japanese",
        "England": "English", "Greece": "Greek", "Russia": "Russian", "Portugal": "Portuguese", "China": "Chinese",
        "Egypt": "Arabic", "Brazil": "Portuguese", "Mexico": "Spanish", "Austria": "German", "Poland": "Polish",
    }),
    "opposites": ("The opposite of hot is cold, and the opposite of {} is", {
        "big": "small", "up": "down", "left": "right", "good": "bad", "day": "night", "old": "young", "fast": "slow",
        "wet": "dry", "hard": "soft", "rich": "poor", "open": "closed", "early": "late", "high": "low", "full": "empty",
        "love": "hate",
    }),
    "months": ("The month after {} is", {
        "January": "February", "February": "March", "March": "April", "April": "May", "May": "June", "June": "July",
        "July": "August", "August": "September", "September": "October", "October": "November",
        "November": "December", "December": "January",
    }),
    "numbers": ("Two, three, four: the number after {} is", {
        "one": "two", "two": "three", "three": "four", "four": "five", "five": "six", "six": "seven",
        "seven": "eight", "eight": "nine", "nine": "ten", "ten": "eleven", "eleven": "twelve",
    }),
    "past": ("Today I sing and yesterday I sang. Today I {} and yesterday I", {
        "go": "went", "eat": "ate", "run": "ran", "see": "saw", "write": "wrote", "drink": "drank", "speak": "spoke",
        "give": "gave", "take": "took", "come": "came", "swim": "swam", "know": "knew", "fall": "fell",
        "sleep": "slept", "think": "thought",
    }),
    "plurals": ("One cat, two cats. One {}, two", {
        "dog": "dogs", "house": "houses", "tree": "trees", "man": "men", "child": "children", "foot": "feet",
        "mouse": "mice", "book": "books", "city": "cities", "woman": "women", "leaf": "leaves", "car": "cars",
        "tooth": "teeth", "person": "people", "day": "days",
    }),
    "colors": ("Everybody knows that the color of {} is", {
        "grass": "green", "snow": "white", "blood": "red", "coal": "black", "the sky": "blue", "milk": "white",
        "a lemon": "yellow", "a carrot": "orange", "chocolate": "brown", "the sea": "blue", "an emerald": "green",
        "the night": "black", "gold": "yellow", "a ruby": "red", "a banana": "yellow",
    }),
}  # fmt: skip

COPY = "The code word is {}. Remember it: the code word is"
CODE_WORDS = (
    "red", "blue", "green", "gold", "apple", "river", "tiger", "stone", "music", "paper", "cloud", "north", "silver",
    "winter", "bridge", "garden", "horse", "island", "market", "mirror", "ocean", "planet", "summer", "window",
)  # fmt: skip
