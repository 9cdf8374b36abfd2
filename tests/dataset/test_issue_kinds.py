from stages.dataset.issue_kinds import EMBEDDING_KINDS, KINDS, NAMES, OTHER_KINDS, PIXEL_KINDS, SHAPE_KINDS
from stages.noise.issues import ISSUE_COLUMNS
from stages.review import suspects
from stages.workflow.schema import Curate


def test_every_kind_has_a_name_columns_a_policy_and_a_queue():
    assert ("label_error", *EMBEDDING_KINDS, *PIXEL_KINDS, *SHAPE_KINDS) == KINDS
    assert tuple(NAMES) == KINDS
    assert [name for name in Curate.model_fields if name in KINDS] == list(KINDS)
    assert [kind for kind in suspects.KINDS if kind in KINDS] == list(KINDS)
    assert [name for name in ISSUE_COLUMNS if name.startswith("is_")] == [
        "is_label_issue",
        *(f"is_{kind}_issue" for kind in OTHER_KINDS),
    ]
