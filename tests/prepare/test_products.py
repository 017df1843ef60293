"""Products: words, titles, and that a picture shows its attributes and nothing else."""

from itertools import combinations

import numpy as np
import pytest

from recbole_vlm2rec.prepare.products import (
    ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    TITLE_ATTRIBUTES,
    Product,
    held_out,
    random_product,
    render,
    title,
)

PRODUCT = Product(("mug", "vintage", "cotton", "travel", "red", "striped", "beach"))


def pixels(product: Product, seed: int = 5) -> np.ndarray:
    return np.asarray(render(product, rng=np.random.default_rng(seed)), dtype=int)


def changed(one: Product, other: Product, seed: int) -> float:
    """Share of pixels whose colour differs clearly."""
    return float((np.abs(pixels(one, seed) - pixels(other, seed)).max(axis=2) > 24).mean())


def test_every_word_belongs_to_one_attribute_and_is_one_lower_case_word():
    words = [word for choices in ATTRIBUTES.values() for word in choices]
    assert len(set(words)) == len(words)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_every_attribute_stands_in_title_or_picture():
    assert set(TITLE_ATTRIBUTES) | set(IMAGE_ATTRIBUTES) == set(ATTRIBUTES)
    assert set(TITLE_ATTRIBUTES) & set(IMAGE_ATTRIBUTES) == {"category"}


def test_title_states_its_attributes_and_no_others():
    assert title(PRODUCT) == "vintage cotton travel mug"
    assert title(PRODUCT.replace(colour="blue", pattern="dotted", scene="night")) == title(PRODUCT)
    assert title(PRODUCT.replace(material="glass")) == "vintage glass travel mug"


@pytest.mark.parametrize("attribute", IMAGE_ATTRIBUTES)
def test_a_picture_shows_every_word_of_an_image_attribute(attribute):
    for seed, category in enumerate(ATTRIBUTES["category"]):
        base = PRODUCT.replace(category=category)
        for one, other in combinations(ATTRIBUTES[attribute], 2):
            share = changed(base.replace(**{attribute: one}), base.replace(**{attribute: other}), seed)
            assert share > 0.03, (category, attribute, one, other)


@pytest.mark.parametrize("attribute", [name for name in TITLE_ATTRIBUTES if name not in IMAGE_ATTRIBUTES])
def test_a_picture_shows_no_title_attribute(attribute):
    for word in ATTRIBUTES[attribute]:
        assert (pixels(PRODUCT.replace(**{attribute: word})) == pixels(PRODUCT)).all()


@pytest.mark.parametrize("colour, strongest", [("red", 0), ("green", 1), ("blue", 2)])
def test_the_middle_of_a_plain_product_has_its_colour(colour, strongest):
    red_green_blue = np.asarray(render(PRODUCT.replace(category="bag", pattern="plain", colour=colour)))[30, 28]
    assert int(np.argmax(red_green_blue)) == strongest


def test_pictures_of_one_product_vary_with_the_rng_and_repeat_with_its_seed():
    assert (pixels(PRODUCT, 1) == pixels(PRODUCT, 1)).all()
    assert (pixels(PRODUCT, 1) != pixels(PRODUCT, 2)).any()


def test_every_product_consumes_the_rng_alike():
    states = []
    for product in (PRODUCT, PRODUCT.replace(category="clock", pattern="plain", scene="meadow")):
        rng = np.random.default_rng(3)
        render(product, rng=rng)
        states.append(rng.random())
    assert states[0] == states[1]


@pytest.mark.parametrize("size", [16, 56, 112])
def test_size(size):
    picture = render(PRODUCT, size)
    assert (picture.size, picture.mode) == ((size, size), "RGB")


def test_random_products_reach_every_word_and_repeat_with_the_seed():
    rng = np.random.default_rng(0)
    drawn = [random_product(rng) for _ in range(300)]
    assert {word for product in drawn for word in product.values} == {word for choices in ATTRIBUTES.values() for word in choices}
    assert random_product(np.random.default_rng(0)) == drawn[0]


def test_a_fixed_quarter_of_the_products_is_held_out():
    rng = np.random.default_rng(0)
    share = np.mean([held_out(random_product(rng)) for _ in range(4000)])
    assert share == pytest.approx(0.25, abs=0.03)


def test_errors_name_the_wrong_word():
    with pytest.raises(ValueError, match="'teapot' is no category"):
        PRODUCT.replace(category="teapot")
    with pytest.raises(ValueError, match="unknown attribute 'weight'"):
        PRODUCT.replace(weight="heavy")
    with pytest.raises(ValueError, match="needs 7 words"):
        Product(("mug",))
    with pytest.raises(ValueError, match="at least 16 pixels"):
        render(PRODUCT, 8)
