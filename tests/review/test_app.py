import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from stages.curation.reviews import COLUMNS, read_reviews
from stages.dataset.base import CONFLICT_COLUMNS, Dataset, write_dataset
from stages.dataset.files import new_folder, write_table
from stages.errors import WinnowError
from stages.review.__main__ import listen, main, open_log, read_evidence, reviewer_name
from stages.review.app import create_app
from stages.review.decisions import ReviewLog
from stages.review.suspects import Evidence

HEADER = ",".join(COLUMNS) + "\n"
TOKEN = "t" * 40
HOSTILE = "<script>alert('x')</script>"
BASE = "http://127.0.0.1"


@dataclass
class Page:
    """The application with a browser before it."""

    browser: TestClient
    path: Path
    evidence: Evidence

    def post(self, sample_id: str, decision: str, **more: str):
        form = {"token": TOKEN, "sample_id": sample_id, "decision": decision, **more}
        return self.browser.post("/decide", data=form, follow_redirects=False)

    def rows(self) -> list[list[str]]:
        table = read_reviews(self.path, self.evidence.classes)
        return table[["sample_id", "decision", "label"]].to_numpy().tolist()


@pytest.fixture
def open_page(tmp_path, issues, embeddings):
    def opened(
        base: Dataset,
        ledger: pd.DataFrame | None = None,
        conflicts: pd.DataFrame | None = None,
        pred_probs: np.ndarray | None = None,
    ) -> Page:
        path = tmp_path / "reviews.csv"
        path.write_text(HEADER)
        evidence = Evidence(base, issues, embeddings, ledger, conflicts, pred_probs)
        log = ReviewLog(path, tmp_path / "reviews.lock", base.classes, "ada")
        return Page(TestClient(create_app(evidence, log, TOKEN), base_url=BASE), path, evidence)

    return opened


@pytest.fixture
def page(open_page, tiny_dataset) -> Page:
    return open_page(tiny_dataset)


@pytest.fixture
def queue(page) -> tuple[str, ...]:
    return page.evidence.queue("label_error")


def shown(text: str) -> str:
    """The sample that a page asks about."""
    return re.search(r'name="sample_id" value="(\w+)"', text).group(1)


def test_the_queue_starts_with_the_worst_label(page, queue):
    text = page.browser.get("/").text
    assert shown(text) == queue[0]
    assert f"/image/{queue[0]}.png" in text
    assert "1 of 4" in text
    assert "0 of 4 decided" in text
    for nearest, _ in page.evidence.neighbours(queue[0]):
        assert f"/image/{nearest.sample_id}.png" in text


def test_the_page_says_what_the_policy_did(open_page, tiny_dataset, issues):
    name = issues["sample_id"][80]
    columns = ["sample_id", "action", "label", "reason", "decided_by"]
    ledger = pd.DataFrame([[name, "relabel", "c", "label_error: sure", "policy"]], columns=columns)
    text = open_page(tiny_dataset, ledger).browser.get(f"/?at={name}").text
    assert "relabel as c" in text
    assert "label_error: sure" in text


def test_decisions_are_written_at_once_and_do_not_come_up_again(page, queue):
    first, second, third, fourth = queue
    suggested = page.evidence.sample(second).suggested
    answer = page.post(first, "keep", note="clear, \nto me")
    assert answer.status_code == 303
    assert page.rows() == [[first, "keep", ""]]
    assert shown(page.browser.get(answer.headers["location"]).text) == second
    page.post(second, "accept")
    page.post(third, "drop")
    answer = page.post(fourth, "relabel", label=page.evidence.sample(fourth).suggested)
    assert page.rows()[1:3] == [[second, "relabel", suggested], [third, "drop", ""]]
    assert page.path.read_text().startswith(HEADER + f"{first},keep,,ada,")
    end = page.browser.get(answer.headers["location"]).text
    assert "All are decided" in end
    assert "4 decided since this page started" in end
    assert "dvc repro" in end
    assert "All are decided" in page.browser.get("/").text
    again = page.browser.get("/?all=1").text
    assert shown(again) == first
    assert "decided <b>keep</b>" in again


def test_skipped_samples_stay_open(page, queue):
    assert f"/?at={queue[1]}" in page.browser.get("/").text
    last = page.browser.get(f"/?at={queue[-1]}").text
    assert "/?at=end" in last
    end = page.browser.get("/?at=end").text
    assert "Go through the 4 that are still open" in end
    assert page.rows() == []


def test_undo_takes_the_last_decision_back_and_shows_the_sample(page, queue):
    page.post(queue[0], "keep")
    page.post(queue[1], "drop")
    answer = page.browser.post("/undo", data={"token": TOKEN}, follow_redirects=False)
    assert answer.headers["location"] == f"/?at={queue[1]}"
    assert page.rows() == [[queue[0], "keep", ""]]
    page.browser.post("/undo", data={"token": TOKEN})
    assert page.path.read_text() == HEADER
    assert page.browser.post("/undo", data={"token": TOKEN}).status_code == 409


def test_filters_carry_on_through_a_decision(page, issues):
    val = page.evidence.queue("label_error", split="val")
    text = page.browser.get("/?split=val&given=c").text
    assert "No sample is suspected here" in text
    answer = page.post(val[0], "keep", split="val")
    assert answer.headers["location"] == "/?split=val&at=end"
    assert shown(page.browser.get("/?kind=outlier").text) == issues["sample_id"][7]
    duplicate = page.browser.get(f"/?kind=near_duplicate&at={issues['sample_id'][8]}").text
    assert "Its near-duplicates" in duplicate


def test_the_filter_offers_the_kinds_that_were_found(open_page, tiny_dataset, issues):
    issues.loc[9, "is_blurry_issue"] = True
    page = open_page(tiny_dataset)
    text = page.browser.get("/?kind=blurry").text
    assert shown(text) == issues["sample_id"][9]
    assert '<option value="blurry" selected>blurry images' in text
    assert '<option value="near_duplicate">' in text
    assert '<option value="dark"' not in text


def test_a_conflict_is_settled_with_one_of_the_claimed_labels(open_page, partly_labelled, pile, conflicts):
    page = open_page(partly_labelled, None, conflicts)
    text = page.browser.get("/?kind=conflict").text
    name = shown(text)
    assert name == pile["sample_id"][0]
    for part in ("Claimed <b>a</b>", "a/0.png", "Claimed <b>c</b>", "c/8.png, c/9.png", "training split"):
        assert part in text
    assert re.findall(r'value="(claim:\w)"', text) == ["claim:a", "claim:c"]
    answer = page.post(name, "claim:c", kind="conflict")
    assert answer.status_code == 303
    assert page.rows() == [[name, "relabel", "c"]]
    assert "All are decided" in page.browser.get(answer.headers["location"]).text


def buttons(text: str) -> dict[str, tuple[bool, str]]:
    """The decisions that a page offers: whether it is a main button, and its key."""
    found = re.findall(
        r'<button( class="main")?(?: class="danger")? name="decision" value="([^"]+)"([^>]*)', text
    )
    return {value: (bool(main), "".join(re.findall(r'data-key="(.)"', rest))) for main, value, rest in found}


def test_the_main_button_of_a_conflict_is_a_claimed_label(open_page, partly_labelled, pile, conflicts):
    """The models would have b: nobody claimed it."""
    probs = np.tile(np.array([0.1, 0.6, 0.3], np.float32), (len(pile), 1))
    page = open_page(partly_labelled, None, conflicts, probs)
    text = page.browser.get("/?kind=conflict").text
    offered = buttons(text)
    assert offered["accept"] == (True, "s")
    assert [value for value, (main, _) in offered.items() if main] == ["accept"]
    assert "Relabel as c" in text
    assert "Relabel as b" not in text
    page.post(shown(text), "accept")
    assert page.rows() == [[pile["sample_id"][0], "relabel", "c"]]


def test_without_probabilities_the_claimed_labels_are_the_main_buttons(
    open_page, partly_labelled, pile, conflicts
):
    page = open_page(partly_labelled, None, conflicts)
    text = page.browser.get("/?kind=conflict").text
    offered = buttons(text)
    assert "accept" not in offered
    main = {value: key for value, (main, key) in offered.items() if main}
    assert main == {"claim:a": "1", "claim:c": "2"}
    assert page.post(shown(text), "accept").status_code == 422
    assert page.rows() == []


@pytest.mark.parametrize(
    ("frozen", "where"),
    [
        (None, "moves to the training split"),
        ("test", "returns to the test split"),
        ("val", "returns to the validation split"),
    ],
)
def test_the_page_says_what_becomes_of_a_sample_without_a_label(
    open_page, partly_labelled, pile, conflicts, frozen, where
):
    conflicts["split"] = frozen
    columns = ["sample_id", "action", "label", "reason", "decided_by"]
    row = [pile["sample_id"][0], "keep", None, "conflicting_labels: a, c; for review", "policy"]
    page = open_page(partly_labelled, pd.DataFrame([row], columns=columns), conflicts)
    text = page.browser.get("/?kind=conflict").text
    assert "<b>stays without a label</b>, and no model is trained on it" in text
    assert where in text
    assert "conflicting_labels" not in text
    assert "<b>keep</b>" not in text


@pytest.mark.parametrize("label", ["b", "", "zebra", HOSTILE])
def test_a_label_that_nobody_claimed_is_no_claim(open_page, partly_labelled, pile, conflicts, label):
    page = open_page(partly_labelled, None, conflicts)
    for name in pile["sample_id"][[0, 1]]:
        answer = page.post(name, f"claim:{label}")
        assert answer.status_code == 422
        assert "No file claims" in answer.text
        assert "<script>alert" not in answer.text
    assert page.rows() == []


def test_a_claimed_label_that_is_no_class_is_shown_but_cannot_be_chosen(
    open_page, partly_labelled, pile, conflicts
):
    conflicts.loc[0, "label"] = HOSTILE
    page = open_page(partly_labelled, None, conflicts)
    text = page.browser.get("/?kind=conflict").text
    assert "Claimed <b>&lt;script&gt;alert" in text
    assert re.findall(r'value="(claim:\w+)"', text) == ["claim:a", "claim:c"]
    assert page.post(shown(text), f"claim:{HOSTILE}").status_code == 422
    assert page.rows() == []


def test_a_conflict_of_very_many_labels_shows_some(open_page, partly_labelled, pile, conflicts):
    sample_id = pile["sample_id"][0]
    rows = [(sample_id, f"label {number:03}", f"{number}.png", None) for number in range(500)]
    page = open_page(partly_labelled, None, pd.DataFrame(rows, columns=conflicts.columns))
    text = page.browser.get("/?kind=conflict").text
    assert text.count("Claimed <b>") == 20
    assert "480 other labels" in text


def test_unlabelled_samples_are_labelled_kept_or_dropped(open_page, partly_labelled, pile, conflicts):
    page = open_page(partly_labelled, None, conflicts)
    queue = page.evidence.queue("unlabeled")
    text = page.browser.get("/?kind=unlabeled").text
    assert shown(text) == queue[0]
    assert "1 of 3" in text
    assert "Relabel as b" in text
    assert "Keep without a label" in text
    assert "claim:" not in text
    page.post(queue[0], "accept", kind="unlabeled")
    page.post(queue[1], "keep", kind="unlabeled")
    page.post(queue[2], "drop", kind="unlabeled")
    assert page.rows() == [[queue[0], "relabel", "b"], [queue[1], "keep", ""], [queue[2], "drop", ""]]
    grid = page.browser.get("/?kind=unlabeled&view=grid&all=1").text
    assert "b? 90.0 %" in grid
    assert "3 in all" in grid


def test_the_end_of_a_queue_names_the_others(open_page, partly_labelled, pile, conflicts):
    text = open_page(partly_labelled, None, conflicts).browser.get("/?at=end").text
    assert "1 conflicting labels to look at" in text
    assert "3 unlabelled to look at" in text


def test_the_grid_shows_what_is_open(page, queue):
    page.post(queue[1], "keep")
    text = page.browser.get("/?view=grid").text
    assert re.findall(r"/image/(\w+)\.png", text) == [name for name in queue if name != queue[1]]
    assert "Nothing is left here" in page.browser.get("/?view=grid&split=unlabeled").text
    for odd in ("0", "999", "-1", "x", "9" * 5000, "²"):
        assert page.browser.get("/", params={"view": "grid", "page": odd}).status_code == 200


def test_pictures_are_png(page, queue):
    answer = page.browser.get(f"/image/{queue[0]}.png")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == page.evidence.png(queue[0])
    assert page.browser.get("/image/0000000000000000.png").status_code == 404
    assert page.browser.get("/image/..%2f..%2freviews.csv.png").status_code == 404


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "é"])
@pytest.mark.parametrize("where", ["/decide", "/undo"])
def test_a_form_without_the_token_writes_nothing(page, queue, token, where):
    page.post(queue[1], "keep")
    before = page.path.read_bytes()
    form = {"sample_id": queue[0], "decision": "drop", "token": token}
    assert page.browser.post(where, data=form).status_code == 403
    form.pop("token")
    assert page.browser.post(where, data=form).status_code == 403
    assert page.path.read_bytes() == before


def test_each_start_has_a_token_of_its_own(open_page, tiny_dataset):
    page = open_page(tiny_dataset)
    apps = [create_app(page.evidence, None) for _ in range(2)]
    tokens = {app.state.session.token for app in apps}
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"sample_id": "0" * 16, "decision": "keep"}, 404, "There is no sample"),
        ({"sample_id": HOSTILE, "decision": "keep"}, 404, "There is no sample"),
        ({"decision": "keep", "sample_id": ""}, 404, "There is no sample"),
        ({"decision": "burn"}, 422, "There is no decision"),
        ({"decision": ""}, 422, "There is no decision"),
        ({"decision": "relabel", "label": "cow"}, 422, "There is no class"),
        ({"decision": "relabel"}, 422, "There is no class"),
        ({"decision": "relabel", "label": "b"}, 422, "labelled &#39;b&#39; already"),
        ({"decision": "keep", "kind": "nonsense"}, 422, "There is no kind"),
        ({"decision": "keep", "split": "nonsense"}, 422, "There is no split"),
        ({"decision": "keep", "given": "nonsense"}, 422, "There is no class"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(page, issues, form, status, words):
    answer = page.browser.post("/decide", data={"token": TOKEN, "sample_id": issues["sample_id"][40]} | form)
    assert answer.status_code == status
    assert words in answer.text
    assert "<script>alert" not in answer.text
    assert page.path.read_text() == HEADER


@pytest.mark.parametrize("query", ["?at=" + "0" * 16, "?kind=x", "?split=x", "?given=x", "?at=../../x"])
def test_an_address_that_is_not_one_is_refused(page, query):
    assert page.browser.get("/" + query).status_code in (404, 422)


@pytest.mark.parametrize("body", [b"\xff\xfe", b"a=1&" * 60])
def test_a_body_that_is_no_form_is_refused(page, body):
    assert page.browser.post("/decide", content=body).status_code == 400


def test_a_body_that_is_too_large_is_refused(page):
    assert page.browser.post("/decide", content=b"a=" + b"x" * 100_000).status_code == 413


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[::1]", ""])
def test_foreign_hosts_are_refused(page, queue, host):
    assert page.browser.get("/", headers={"Host": host}).status_code == 400
    form = {"token": TOKEN, "sample_id": queue[0], "decision": "drop"}
    assert page.browser.post("/decide", data=form, headers={"Host": host}).status_code == 400
    assert page.rows() == []


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "localhost:9000"])
def test_this_machine_is_served(page, host):
    assert page.browser.get("/", headers={"Host": host}).status_code == 200


def test_names_from_strangers_are_shown_and_not_run(open_page, tiny_dataset, issues):
    renamed = {"a": HOSTILE, "b": '"><img src=x onerror=y>', "c": "c&d"}
    classes = list(renamed.values())
    samples = tiny_dataset.samples.assign(
        label=tiny_dataset.samples["label"].map(renamed), source="'\"><script>z</script>.png"
    )
    for column in ("given_label", "suggested_label"):
        issues[column] = issues[column].map(renamed)
    page = open_page(Dataset(tiny_dataset.images, samples, classes))
    name = issues["sample_id"][5]  # given the hostile class
    note = page.post(name, "accept", note="<script>note</script>", given=HOSTILE)
    texts = [
        page.browser.get(where).text
        for where in ("/", f"/?at={name}", "/?view=grid&all=1", "/?at=end", note.headers["location"])
    ]
    for text in texts:
        assert len(re.findall(r"<script", text)) == 1  # the page's own
        assert "<img src=x" not in text
    assert "&lt;script&gt;alert" in texts[1]
    assert "&lt;script&gt;note" in texts[1]
    assert page.rows() == [[name, "relabel", renamed["b"]]]


def test_pages_may_load_and_run_nothing_but_their_own(page):
    answer = page.browser.get("/")
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy).group(1)
    assert f'<script nonce="{nonce}">' in answer.text
    assert nonce not in page.browser.get("/").text
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"(src|href|action)=\"(https?:)?//", answer.text)


def test_decisions_at_the_same_time_are_all_written(page, issues):
    names = issues["sample_id"].tolist()[:30]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: page.post(name, "keep"), names))
    assert {answer.status_code for answer in answers} == {303}
    assert sorted(row[0] for row in page.rows()) == sorted(names)


def test_a_file_that_broke_meanwhile_is_reported_and_left(page, queue):
    page.path.write_text(HEADER + "oops\n")
    for answer in (page.browser.get("/"), page.post(queue[0], "keep")):
        assert answer.status_code == 409
        assert "line 2: 1 fields" in answer.text
    assert page.path.read_text() == HEADER + "oops\n"


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def data(workspace, tiny_dataset, issues, embeddings) -> Path:
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    with new_folder(workspace / "data/noise") as folder:
        write_table(folder / "issues.parquet", issues)
        np.save(folder / "embeddings.npy", embeddings)
        np.save(folder / "pred_probs.npy", np.tile(np.array([[0.1, 0.6, 0.3]], np.float32), (len(issues), 1)))
    return workspace


def test_the_command_knows_the_decisions_on_copies_and_the_probabilities(data, issues):
    name = issues["sample_id"][80]
    (data / "data/reviews.csv").write_text(HEADER + f"{'0' * 16},drop,,r,2026-01-01,\n")
    rows = [(name, label, f"{label}.png", "test") for label in "ac"]
    write_table(data / "data/ingested/conflicts.parquet", pd.DataFrame(rows, columns=CONFLICT_COLUMNS))
    with new_folder(data / "reports/ingest") as folder:
        copies = pd.DataFrame({"sample_id": ["0" * 16], "kept_id": [name]})
        write_table(folder / "duplicates.parquet", copies)
    evidence = read_evidence()
    assert evidence.sample(name).suggested == "c"  # it is labelled a, and b is likelier
    assert open_log(evidence, "ada").latest()[name].decision == "drop"


def fails(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("missing", ["data/ingested", "data/noise"])
def test_without_data_one_line_says_what_to_run(data, capsys, missing):
    (data / missing).rename(data / "gone")
    error = fails(capsys)
    assert "dvc repro" in error
    assert missing in error
    assert "\n" not in error


def test_a_malformed_reviews_file_is_named_with_its_line(data, capsys):
    (data / "data/reviews.csv").write_text(HEADER + "00000000000000aa,relabel,cow,r,2026-01-02,\n")
    assert fails(capsys).startswith("review: data/reviews.csv line 2: unknown class 'cow'")


def test_a_taken_port_is_one_line(data, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = fails(capsys, "--port", str(port))
    assert f"127.0.0.1:{port}" in error
    assert "--port" in error
    assert "\n" not in error


@pytest.mark.parametrize("port", ["-1", "65536", "x", "80.5", ""])
def test_a_port_that_is_none_is_refused(capsys, port):
    assert "is not a port" in fails(capsys, f"--port={port}")


def test_it_listens_to_this_machine_alone():
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("name", ["", " \n", "x" * 101])
def test_a_reviewer_needs_a_name(name):
    with pytest.raises(WinnowError, match="--reviewer"):
        reviewer_name(name)


def test_the_reviewer_is_the_user_by_default(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "grace")
    assert reviewer_name(None) == "grace"
    assert reviewer_name("ada\nlovelace") == "ada lovelace"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_the_command_serves_until_ctrl_c_and_says_what_is_next(data, issues):
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.review", "--port", "0", "--reviewer", "ada"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        address = ""
        while not address:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            address = "".join(re.findall(r"http://127\.0\.0\.1:\d+", line))
        text = _fetch(address)
        token = re.search(r'name="token" value="([^"]+)"', text).group(1)
        form = f"token={token}&sample_id={shown(text)}&decision=drop".encode()
        assert "1 of 4 decided" in _fetch(address + "/decide", form)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "1 decision written to data/reviews.csv. Next: dvc repro" in out
    assert err == ""
    assert read_reviews(data / "data/reviews.csv", ["a", "b", "c"])["decision"].tolist() == ["drop"]


def _fetch(address: str, form: bytes | None = None) -> str:
    for _ in range(3000):
        try:
            with urllib.request.urlopen(address, form, timeout=300) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")
