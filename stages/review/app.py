"""Build the review page: samples to decide about, one at a time or as a grid, and a form.

It listens to this machine alone and trusts nothing that comes in: other `Host` headers are refused
(DNS rebinding), a form needs the token of this start (cross-site requests), every value is checked
against what is known, and templates escape names of classes and files, which come from strangers.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stages.dataset.ids import SPLITS
from stages.errors import WinnowError
from stages.review.decisions import NOTE_LENGTH, Decision, Review, ReviewLog
from stages.review.suspects import KINDS, Evidence, Kind

HOSTS = ["127.0.0.1", "localhost"]
END = "end"  # in place of a sample id: after the last one
CLAIM = "claim:"  # before a claimed label: the decision for it, as one button
_FORM_BYTES = 64 * 1024
_MOST_CLAIMS = 20  # labels shown of one conflict: an all-black image may stand under every class
_PAGE = 60  # thumbnails of a grid page
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Selection:
    """The suspects that are looked at: the part of the address that every link carries on.

    Attributes
    ----------
    kind : a key of `KINDS`
    split, given : a split and a class name (given, or suggested where none is); empty for all
    all : also the samples that somebody has decided about
    """

    kind: Kind = "label_error"
    split: str = ""
    given: str = ""
    all: bool = False

    @classmethod
    def parse(cls, values: Any, classes: list[str]) -> Selection:
        """Read the selection from a query or form; a 422 for a value that is not known."""
        kinds: dict[str, Kind] = {kind: kind for kind in KINDS}
        kind = values.get("kind") or cls.kind
        split, given = values.get("split") or "", values.get("given") or ""
        for name, value, known in (
            ("kind", kind, kinds),
            ("split", split, ["", *SPLITS]),
            ("class", given, ["", *classes]),
        ):
            if value not in known:
                raise HTTPException(422, f"There is no {name} {value!r}.")
        return cls(kinds[kind], split, given, values.get("all", "") not in ("", "0"))

    def fields(self) -> dict[str, str]:
        """Return the fields that differ from the default, as strings."""
        given = asdict(self) | {"all": "1" if self.all else ""}
        return {name: value for name, value in given.items() if value and value != getattr(Selection, name)}

    def link(self, **more: object) -> str:
        """Return the address of this selection, with other parameters besides."""
        query = urlencode(self.fields() | {name: str(value) for name, value in more.items()})
        return f"/?{query}" if query else "/"


class ReviewSession:
    """The state behind the page: evidence, decisions, and where one is in the queue."""

    def __init__(self, evidence: Evidence, log: ReviewLog, token: str) -> None:
        self.evidence = evidence
        self.log = log
        self.token = token
        # Another start may show other pixels under the same id: a browser must not keep them.
        self.version = secrets.token_hex(4)

    def known(self, sample_id: str) -> str:
        """Return the id itself; a 404 for one that is not in the data."""
        if sample_id not in self.evidence:
            raise HTTPException(404, f"There is no sample {sample_id!r} in data/ingested.")
        return sample_id

    def undecided(self, selection: Selection) -> list[str]:
        """Return the ids that are still to be looked at, in order."""
        decided = {} if selection.all else self.log.latest()
        ordered = self.evidence.queue(selection.kind, selection.split, selection.given)
        return [name for name in ordered if name not in decided]

    def around(self, selection: Selection, sample_id: str) -> tuple[str, str]:
        """Return the open ids before and after a sample; `END` after the last, empty before the first."""
        ordered = self.evidence.queue(selection.kind, selection.split, selection.given)
        undecided = self.undecided(selection)
        if sample_id not in ordered:
            return "", next(iter(undecided), END)
        here, still = ordered.index(sample_id), set(undecided)
        before = next((name for name in reversed(ordered[:here]) if name in still), "")
        return before, next((name for name in ordered[here + 1 :] if name in still), END)

    def progress(self, selection: Selection) -> dict[str, int]:
        """Count the selected suspects, and those of them that are decided."""
        everything = self.evidence.queue(selection.kind, selection.split, selection.given)
        decided = self.log.latest()
        return {"decided": sum(name in decided for name in everything), "total": len(everything)}

    def decide(self, form: dict[str, str]) -> Review:
        """Write the form's decision; a 4xx where it makes no sense, a WinnowError where the file does not."""
        sample = self.evidence.sample(self.known(form.get("sample_id", "")))
        decision, label = form.get("decision", ""), ""
        if decision == "accept":
            if sample.suggested is None:
                raise HTTPException(422, "There is no suggestion for this sample.")
            decision, label = "relabel", sample.suggested
        elif decision.startswith(CLAIM):
            decision, label = "relabel", decision.removeprefix(CLAIM)
            if label not in [claimed for claimed, _ in sample.claims]:
                raise HTTPException(422, f"No file claims that this is {label!r}.")
        elif decision == "relabel":
            label = form.get("label", "")
        if decision == "relabel" and label not in self.evidence.classes:
            raise HTTPException(422, f"There is no class {label!r}.")
        if decision == "relabel" and label == sample.given:
            raise HTTPException(422, f"It is labelled {label!r} already: keep it instead.")
        written: dict[str, Decision] = {"keep": "keep", "drop": "drop", "relabel": "relabel"}
        if decision not in written:
            raise HTTPException(422, f"There is no decision {decision!r}.")
        return self.log.append(sample.sample_id, written[decision], label, form.get("note", ""))


def create_app(evidence: Evidence, log: ReviewLog, token: str | None = None) -> FastAPI:
    """Build the web application.

    Parameters
    ----------
    evidence : what is shown
    log : where decisions go
    token : that every form must bring; a random one by default
    """
    session = ReviewSession(evidence, log, token or secrets.token_urlsafe(32))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.session = session

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: StarletteHTTPException) -> HTMLResponse:
        return _page("message.html.j2", error.status_code, session, Selection(), message=str(error.detail))

    @app.exception_handler(WinnowError)
    async def report(request: Request, error: WinnowError) -> HTMLResponse:
        return _page("message.html.j2", 409, session, Selection(), message=str(error))

    @app.get("/")
    def show(request: Request) -> HTMLResponse:
        query = request.query_params
        selection = Selection.parse(query, evidence.classes)
        if query.get("view") == "grid":
            return _grid(session, selection, query.get("page", "1"))
        at = query.get("at") or next(iter(session.undecided(selection)), END)
        return _end(session, selection) if at == END else _sample(session, selection, session.known(at))

    @app.get("/image/{sample_id}.png")
    def image(sample_id: str) -> Response:
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(evidence.png(session.known(sample_id)), media_type="image/png", headers=headers)

    @app.post("/decide")
    def decide(form: Annotated[dict[str, str], Depends(_read_form)]) -> RedirectResponse:
        _check_token(form, session.token)
        selection = Selection.parse(form, evidence.classes)
        review = session.decide(form)
        return RedirectResponse(selection.link(at=session.around(selection, review.sample_id)[1]), 303)

    @app.post("/undo")
    def undo(form: Annotated[dict[str, str], Depends(_read_form)]) -> RedirectResponse:
        _check_token(form, session.token)
        selection = Selection.parse(form, evidence.classes)
        review = log.undo()
        if review is None:
            raise HTTPException(409, "There is nothing left to undo: this page decided nothing else.")
        return RedirectResponse(selection.link(at=review.sample_id), 303)

    return app


def _sample(session: ReviewSession, selection: Selection, sample_id: str) -> HTMLResponse:
    before, after = session.around(selection, sample_id)
    undecided = session.undecided(selection)
    return _page(
        "sample.html.j2",
        200,
        session,
        selection,
        sample=session.evidence.sample(sample_id),
        review=session.log.latest().get(sample_id),
        neighbours=session.evidence.neighbours(sample_id),
        duplicates=session.evidence.near_duplicates(sample_id),
        before=before,
        after=after,
        position=undecided.index(sample_id) + 1 if sample_id in undecided else None,
        note_length=NOTE_LENGTH,
        most_claims=_MOST_CLAIMS,
    )


def _grid(session: ReviewSession, selection: Selection, page: str) -> HTMLResponse:
    names = session.undecided(selection)
    pages = max(1, -(-len(names) // _PAGE))
    number = min(max(1, int(page)), pages) if page.isdecimal() and len(page) < 9 else 1
    samples = [session.evidence.sample(name) for name in names[(number - 1) * _PAGE : number * _PAGE]]
    return _page(
        "grid.html.j2", 200, session, selection, samples=samples, number=number, pages=pages, count=len(names)
    )


def _end(session: ReviewSession, selection: Selection) -> HTMLResponse:
    others = {kind: len(session.undecided(Selection(kind))) for kind in KINDS if kind != selection.kind}
    left = len(session.undecided(replace(selection, all=False)))
    return _page("end.html.j2", 200, session, selection, left=left, others=others)


def _page(
    template: str, status: int, session: ReviewSession, selection: Selection, **context: Any
) -> HTMLResponse:
    """Draw a page that may run its own script and style, by a nonce, and nothing else."""
    nonce = secrets.token_urlsafe(16)
    try:
        progress, reviewed = session.progress(selection), len(session.log.latest())
    except WinnowError:  # the file broke meanwhile: the page says so, and still has to be drawn
        progress, reviewed = {"decided": 0, "total": 0}, 0
    text = _TEMPLATES.get_template(template).render(
        nonce=nonce,
        selection=selection,
        kinds=KINDS,
        filled=[kind for kind in KINDS if session.evidence.queue(kind)],
        claim=CLAIM,
        splits=SPLITS,
        classes=session.evidence.classes,
        token=session.token,
        version=session.version,
        progress=progress,
        reviewed=reviewed,
        written=session.log.written,
        reviewer=session.log.reviewer,
        path=session.log.path.as_posix(),
        **context,
    )
    policy = (
        f"default-src 'none'; img-src 'self' data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(text, status, headers={"Content-Security-Policy": policy})


async def _read_form(request: Request) -> dict[str, str]:
    """Read the fields of an urlencoded form, the last of equal names; a 4xx for anything else."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES:
            raise HTTPException(413, "That is more than a form holds.")
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise HTTPException(400, "That is not a form of this page.") from error
    return {name: values[-1] for name, values in fields.items()}


def _check_token(form: dict[str, str], token: str) -> None:
    if not hmac.compare_digest(form.get("token", "").encode(), token.encode()):
        raise HTTPException(
            403, "This form is not from the page that runs now; nothing was written. Open the page anew."
        )


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
