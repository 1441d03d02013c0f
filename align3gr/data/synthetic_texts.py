"""Words of the built-in market: titles, descriptions, profiles and reviews."""

import numpy as np

# (category, what one of its items is called)
CATEGORIES = (
    ("Coffee and Tea", "coffee"),
    ("Camping", "tent"),
    ("Cycling", "helmet"),
    ("Board Games", "game"),
    ("Kitchen Knives", "knife"),
    ("Running", "shoe"),
    ("Headphones", "headset"),
    ("Gardening", "spade"),
    ("Photography", "lens"),
    ("Skin Care", "cream"),
    ("Fishing", "rod"),
    ("Watches", "watch"),
    ("Guitars", "guitar"),
    ("Baking", "pan"),
    ("Yoga", "mat"),
    ("Desk Lamps", "lamp"),
    ("Backpacks", "backpack"),
    ("Pet Food", "kibble"),
    ("Power Tools", "drill"),
    ("Stationery", "pen"),
    ("Swimming", "goggles"),
    ("Winter Wear", "parka"),
    ("Puzzles", "puzzle"),
    ("Perfume", "scent"),
)
ADJECTIVES = ("Classic", "Light", "Compact", "Premium", "Daily", "Sturdy", "Soft", "Bright", "Quiet", "Modern")
BRAND_STARTS = ("Al", "Bren", "Cor", "Del", "Fen", "Gar", "Hol", "Jun")
BRAND_ENDS = ("tona", "wick", "dale", "mere", "vik", "rosa", "heim", "lund")
PROFILE_FORMS = (
    "Mostly shops for {categories}, and likes the brands {brands}.",
    "Fond of {categories}; trusts {brands}.",
    "Looks for {categories} and prefers to buy from {brands}.",
)
# For each rating from 1 to 5.
REVIEW_FORMS = (
    (
        "Broke within a week, avoid this {noun}.",
        "Terrible {noun}, I want my money back.",
        "{brand} let me down badly.",
    ),
    ("Not what I hoped for from {brand}.", "A weak {noun}, hardly used it.", "Disappointing for the price."),
    ("An average {noun}, does the job.", "Fine, nothing special from {brand}.", "It is okay."),
    ("A good {noun}, would buy again.", "{brand} made a solid {noun}.", "Works well, happy with it."),
    ("The best {noun} I have owned!", "Excellent, {brand} never fails me.", "Love it, perfect in every way."),
)


def brand_name(brand: int) -> str:
    """The name of a brand from 0 to 63."""
    return BRAND_STARTS[brand % len(BRAND_STARTS)] + BRAND_ENDS[(brand // len(BRAND_STARTS) + brand) % len(BRAND_ENDS)]


def item_texts(categories: np.ndarray, brands: np.ndarray, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """(titles, texts) of the items; a title is unique by its number, a text names category and brand too."""
    titles, texts = [], []
    chosen = rng.integers(len(ADJECTIVES), size=len(categories))
    for number, (category, brand, adjective) in enumerate(zip(categories, brands, chosen, strict=True)):
        name, noun = CATEGORIES[category]
        title = f"{brand_name(brand)} {ADJECTIVES[adjective]} {noun.title()} {number}"
        titles.append(title)
        texts.append(f"{title}. {name}, {brand_name(brand)}. A {ADJECTIVES[adjective].lower()} {noun} for every day.")
    return titles, texts


def user_profiles(
    category_preferences: np.ndarray, brand_preferences: np.ndarray, rng: np.random.Generator, top: int = 3
) -> list[str]:
    """A sentence for each user that names the `top` favourites of each.

    Args:
        category_preferences: (users, categories), higher is liked more.
        brand_preferences: (users, brands).
        rng: draws the form of the sentence.
        top: favourites named.
    """
    best_categories = np.argsort(-category_preferences, axis=1, kind="stable")[:, :top]
    best_brands = np.argsort(-brand_preferences, axis=1, kind="stable")[:, :top]
    forms = rng.integers(len(PROFILE_FORMS), size=len(best_categories))
    return [
        PROFILE_FORMS[form].format(
            categories=", ".join(CATEGORIES[category][0] for category in categories),
            brands=", ".join(brand_name(brand) for brand in brands),
        )
        for form, categories, brands in zip(forms, best_categories, best_brands, strict=True)
    ]


def write_reviews(
    ratings: np.ndarray, categories: np.ndarray, brands: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """A short review for each interaction, its tone that of the rating (1 to 5)."""
    chosen = rng.integers(len(REVIEW_FORMS[0]), size=len(ratings))
    return [
        REVIEW_FORMS[int(rating) - 1][form].format(noun=CATEGORIES[category][1], brand=brand_name(brand))
        for rating, category, brand, form in zip(ratings, categories, brands, chosen, strict=True)
    ]
