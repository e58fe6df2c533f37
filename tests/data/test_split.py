from __future__ import annotations

from mmkd.data.split import split_by_hash

IMAGES = [{"id": i, "file_name": f"{i}.jpg"} for i in range(20)]
CONTENT = {
    "images": IMAGES,
    "annotations": [{"id": 2 * i, "image_id": i} for i in range(20)],
    "categories": [{"id": 1, "name": "cat"}],
}


def test_every_image_is_in_one_part_with_its_boxes() -> None:
    rest, taken = split_by_hash(CONTENT, 5)
    assert (len(rest["images"]), len(taken["images"])) == (16, 4)
    ids = [[one["id"] for one in part["images"]] for part in (rest, taken)]
    assert sorted(ids[0] + ids[1]) == list(range(20))
    for part, inside in zip((rest, taken), ids, strict=True):
        assert [one["image_id"] for one in part["annotations"]] == inside
        assert part["categories"] == CONTENT["categories"]


def test_the_order_in_the_file_does_not_matter() -> None:
    _, taken = split_by_hash(CONTENT, 5)
    _, other = split_by_hash({**CONTENT, "images": IMAGES[::-1]}, 5)
    assert {one["id"] for one in taken["images"]} == {one["id"] for one in other["images"]}
