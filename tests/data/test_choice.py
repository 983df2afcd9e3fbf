"""Which of many are taken: every group gets its share, and neither names nor order matter."""

from collections import Counter

import pytest

from data.choice import choose


def of_groups(**sizes):
    """(group, content) of each item, groups one after another."""
    return [(group, f"{group}{i}") for group, size in sizes.items() for i in range(size)]


def taken(items, num, seed=0):
    return choose(items, num, seed, content=lambda item: item[1], group=lambda item: item[0])


def test_groups_of_one_size_differ_by_one_at_most_for_any_number():
    items = of_groups(blue=21, green=21, red=21)
    for num in range(3, 64):
        counts = Counter(group for group, _ in taken(items, num)).values()
        assert len(counts) == 3 and max(counts) - min(counts) <= 1


def test_groups_keep_their_proportions():
    items = of_groups(many=90, some=30, few=10)
    for seed in range(20):
        counts = Counter(group for group, _ in taken(items, 39, seed))
        assert abs(counts["many"] - 27) <= 2 and abs(counts["some"] - 9) <= 2 and abs(counts["few"] - 3) <= 1


def test_every_item_is_as_likely_as_any_other_where_there_are_more_groups_than_are_taken():
    items, often = of_groups(a=1, b=2, c=4, d=8, e=16, f=1), Counter()
    for seed in range(500):
        often.update(taken(items, 4, seed))
    assert all(abs(often[item] / 500 - 4 / 32) < 0.06 for item in items)  # four standard errors


def test_choice_is_the_same_in_any_order_and_under_any_name_of_the_groups():
    items = of_groups(blue=21, green=11, red=21)
    renamed = [({"blue": "z", "green": "y", "red": "x"}[group], content) for group, content in reversed(items)]
    for num in (1, 8, 30, 52):
        assert [content for _, content in taken(items, num)] == [content for _, content in taken(renamed, num)]


def test_fewer_are_the_beginning_of_more_and_all_are_as_they_were_given():
    items = of_groups(blue=5, red=9)
    for num in range(14):
        assert len(taken(items, num)) == num and taken(items, num) == taken(items, 13)[:num]
    assert taken(items, 14) == taken(items, 99) == items


@pytest.mark.parametrize("items", [of_groups(only=64), of_groups(blue=32, red=32)])
def test_inside_a_group_the_choice_is_random_and_the_seed_draws_another(items):
    choices = [taken(items, 8, seed) for seed in range(4)]
    assert len({tuple(choice) for choice in choices}) == 4
    assert all(choice != items[:8] for choice in choices) and taken(items, 8, seed=2) == choices[2]


def test_content_may_be_a_file_name_that_is_not_utf8():
    names = ["caf\udce9.wav", "a.wav", "b.wav"]
    assert set(choose(names, 2, 0, str)) < set(names) and choose(names, 3, 0, str) == names
