"""The page of `align3gr demo-ui`: Gradio's components over a session. What it shows is made in the other modules."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by Gradio when it is imported and later: nothing is sent

import gradio as gr

from align3gr.demo import html
from align3gr.demo.session import DemoSession
from align3gr.errors import InputError

_LISTED_USERS = 200  # in the menu; any other id can be typed
_INTRODUCTION = (
    "A user of the test data, or a history of your own: what the models read, what they recommend, and how the search "
    "gets there."
)


def make_page(session: DemoSession) -> gr.Blocks:
    """The page, to be launched or mounted.

    Args:
        session: models, and the data of a run where there are any.
    """
    most = session.longest
    users = session.some_users(_LISTED_USERS)
    with gr.Blocks(title="align3gr", analytics_enabled=False) as page:
        gr.HTML(f"<h2>align3gr: {html.text(' beside '.join(session.names))}</h2><p>{_INTRODUCTION}</p>")
        with gr.Row():
            with gr.Column(scale=1, min_width=320, elem_classes="asked"):
                user = gr.Dropdown(
                    users,
                    value=None,
                    label="User",
                    info=f"{len(users)} of the {len(session.users):,} users of the test data; any id can be typed"
                    if users
                    else "an id that the model knows, or none",
                    allow_custom_value=True,
                )
                history = gr.Textbox(
                    label="History, oldest first", info="one title or item id a line", lines=8, max_lines=20
                )
                words = gr.Textbox(label="Find a title", placeholder="words of it")
                found = gr.Radio([], label="Found; click to append", visible=False)
                length = gr.Slider(1, most, value=min(10, most), step=1, label="Length of the list")
                unseen = gr.Checkbox(label="Leave out the history's items")
                go = gr.Button("Recommend", variant="primary", elem_id="recommend")
            with gr.Column(scale=3):
                parts = [gr.HTML(elem_id=name) for name in ("scids", "lists", "beam", "user")]
        _connect(session, user, history, words, found, length, unseen, go, parts)
    return page


def _connect(
    session: DemoSession,
    user: gr.Dropdown,
    history: gr.Textbox,
    words: gr.Textbox,
    found: gr.Radio,
    length: gr.Slider,
    unseen: gr.Checkbox,
    go: gr.Button,
    parts: list[gr.HTML],
) -> None:
    def choose(user_id: str | None) -> str:
        try:
            return session.history_text(user_id) if user_id else ""
        except InputError:  # a user that only the model knows keeps the history that stands there
            return gr.skip()

    def search(text: str) -> gr.Radio:
        labels = session.find(text)
        return gr.Radio(labels, value=None, visible=bool(labels))

    def append(text: str, label: str | None) -> tuple[str, None]:
        lines = [*text.splitlines(), label] if label else text.splitlines()
        return "\n".join(lines), None

    def recommend(user_id: str | None, text: str, k: int, exclude_seen: bool) -> tuple[str, ...]:
        try:
            answer = session.answer(session.read_history(text), user_id or None, int(k), exclude_seen)
        except InputError as error:
            return html.problem(str(error)), "", "", ""
        makers = (html.scids_part, html.lists_part, html.beam_part, html.user_part)
        return tuple(make(session, answer) for make in makers)

    user.change(choose, user, history, api_name="history")
    words.change(search, words, found, api_name="find", show_progress="hidden")
    found.select(append, [history, found], [history, found], api_visibility="private")
    go.click(recommend, [user, history, length, unseen], parts, api_name="recommend")
