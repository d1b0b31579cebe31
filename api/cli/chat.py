"""`idefics-chat chat`: talk about pictures in a terminal."""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from idefics_chat.cli.chat_connection import ChatConnection, Json, PictureRefused, Stopped
from idefics_chat.cli.chat_lines import (
    COMMANDS,
    NAMES,
    Command,
    Missing,
    Said,
    image_path,
    missing_among,
    read_line,
)
from idefics_chat.cli.common import fail, settings_of
from idefics_chat.cli.database_options import Database
from idefics_chat.cli.task_options import MODEL_FLAGS, TaskFlags, quiet_libraries, task_command
from idefics_chat.cli.task_output import printable
from idefics_chat.server.start_error import DatabaseTaken
from idefics_chat.tasks.remote import ServerError

HISTORY_FILE = Path("~/.idefics_chat_history")
SHOWN_ON_RESUME = 6


@task_command(MODEL_FLAGS)
def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE...] [QUESTION]", help="What to begin with.", show_default=False),
    ] = None,
    conversation: Annotated[
        str | None, typer.Option("--conversation", help="Go on with this conversation; `last` is the latest.")
    ] = None,
    database: Database = None,
    *,
    flags: TaskFlags,
) -> None:
    """Talk about pictures. Conversations are kept, and can be gone on with.

    Examples:

        idefics-chat chat

        idefics-chat chat photo.png "What is in this image?"

        idefics-chat chat --conversation last

        idefics-chat chat --server http://127.0.0.1:8000

    Drop a picture on the terminal, or type its path, to show it. /help lists the commands. Without --server one is
    started in this process, with the conversations of --database.

    A word that ends as a picture's name does (.png, .jpg, ...) must be a file. Where questions are piped in, a picture
    that cannot be shown leaves its question out; the others are asked, and the exit status is 1.
    """
    if missing := missing_among(words or []):
        fail(str(missing))
    with _address(flags, database) as url:
        talk = _Talk(url, flags.key, _go_on_with(flags, database))
        try:
            talk.begin(conversation, " ".join(_quoted(word) for word in words or []))
            talk.until_the_end()
        finally:
            talk.close()
    if talk.left_out and not sys.stdin.isatty():
        raise typer.Exit(1)


class _Talk:
    """The conversation on the terminal. `how` is the command to go on with later, but for the id; `left_out` becomes
    true where a picture could not be shown."""

    def __init__(self, url: str, key: str | None, how: str) -> None:
        self._stops = 0
        self._connection = ChatConnection(url, key, lambda: self._stops)
        self._how = how
        self._images: list[Path] = []
        self.left_out = False
        self._console = Console(highlight=False, soft_wrap=True)
        self._person = sys.stdin.isatty()

    def begin(self, conversation: str | None, first: str) -> None:
        """Take up a conversation, and say the first words."""
        if conversation is not None:
            self._resume("" if conversation == "last" else conversation)
        elif self._person:
            self._console.print("[dim]Drop a picture here or type its path, then ask. /help says what else.[/dim]")
        if first:
            self._survived(first)

    def until_the_end(self) -> None:
        """Answer what is typed until there is no more, or until it says so."""
        with _line_editing(self._person):
            while (line := self._typed()) is not None:
                if line.strip() and not self._survived(line):
                    return

    def close(self) -> None:
        """Hang up, and say how to go on."""
        if self._connection.conversation is not None and self._person:
            self._console.print(f"[dim]Go on later: {self._how} --conversation {self._connection.conversation}[/dim]")
        self._connection.close()

    def _typed(self) -> str | None:
        """The next line; None at the end of the input, or at Ctrl-C."""
        shown = f"[{len(self._images)} image{'s' if len(self._images) > 1 else ''}] > " if self._images else "> "
        try:
            return input(shown if self._person else "")
        except (EOFError, KeyboardInterrupt):
            if self._person:
                self._console.print()
            return None

    def _survived(self, line: str) -> bool:
        """Do what a line says; False where it says to leave."""
        try:
            return self._take(line)
        except PictureRefused as error:
            self._leave_out(f"error: {printable(str(error))}")
        except ServerError as error:
            typer.echo(f"error: {error}", err=True)
            if not self._person:
                raise typer.Exit(1) from None
        except (Stopped, KeyboardInterrupt):
            self._console.print("\n[dim]Stopped. What was asked may still be answered: /history shows it.[/dim]")
        return True

    def _take(self, line: str) -> bool:
        match read_line(line):
            case Command("/quit" | "/exit"):
                return False
            case Command(name, rest):
                self._obey(name, rest)
            case Missing() as missing:
                self._leave_out(f"error: {printable(str(missing))}")
            case Said("", images):
                self._add(images)
            case Said(text, images):
                shown, self._images = [*self._images, *images], []
                self._ask(text, shown)
        return True

    def _ask(self, text: str, shown: list[Path]) -> None:
        """Raises ServerError, after saying which pictures went with the question."""
        try:
            self._answer(lambda: self._connection.ask(text, shown, self._write))
        except ServerError as error:
            bad = error.picture if isinstance(error, PictureRefused) else None
            self._say_dropped([path for path in shown if path != bad])
            raise

    def _leave_out(self, sentence: str) -> None:
        self.left_out = True
        typer.echo(sentence, err=True)

    def _say_dropped(self, images: list[Path]) -> None:
        """Pictures that were given and not shown."""
        if images:
            names = ", ".join(printable(path.name) for path in images)
            typer.echo(f"Not shown: {names}. To show them, give them again.", err=True)

    def _obey(self, name: str, rest: str) -> None:
        match name:
            case "/image":
                path = image_path(rest)
                self._add((path,)) if path else self._leave_out(f"There is no file {rest!r}.")
            case "/new":
                self._connection.leave()
                self._say_dropped(self._images)
                self._images = []
                self._console.print("[dim]A new conversation begins.[/dim]")
            case "/list":
                for item in self._connection.conversations():
                    self._console.print(_listed(item), markup=False)
            case "/resume":
                self._resume(rest)
            case "/history":
                self._tell(self._connection.items())
            case "/again":
                self._answer(lambda: self._connection.again(self._write))
            case "/continue":
                self._answer(lambda: self._connection.go_on(self._write))
            case "/delete":
                self._connection.delete()
                self._console.print("[dim]Deleted; a new conversation begins.[/dim]")
            case "/help":
                for command, text in COMMANDS.items():
                    self._console.print(f"  {command:12} {text}", markup=False)
            case _:
                typer.echo(f"There is no command {name}; /help lists those there are.", err=True)

    def _add(self, images: tuple[Path, ...]) -> None:
        self._images += images
        for path in images:
            self._console.print(f"[dim]{printable(path.name)} goes with the next question.[/dim]")

    def _resume(self, conversation: str) -> None:
        if not conversation:
            latest = self._connection.conversations(limit=1)
            if not latest:
                raise ServerError("conversation_not_found", "There is no conversation yet to go on with.", 404)
            conversation = latest[0]["id"]
        self._connection.resume(conversation)
        if self._person:
            self._tell(self._connection.items()[-SHOWN_ON_RESUME:])

    def _tell(self, items: list[Json]) -> None:
        for item in items:
            self._console.print(printable(spoken(item)), markup=False)

    def _write(self, piece: str) -> None:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()

    def _answer(self, ask: Callable[[], Json]) -> None:
        """An answer, and what there is to add to it."""
        with self._counting_stops():
            end = ask()
        note = ""
        if end["status"] == "failed":
            note = f" [failed: {end['error']['message']}]"
        elif end["status"] != "completed":
            note = f" [cut short: {end['incomplete_details']['cause']}; /continue goes on with it]"
        sys.stdout.write(f"{note}\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def _counting_stops(self) -> Iterator[None]:
        """Ctrl-C is counted, and breaks in on nothing: no piece of an answer is lost."""

        def count(*_: object) -> None:
            self._stops += 1

        self._stops = 0
        before = signal.signal(signal.SIGINT, count)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _address(flags: TaskFlags, database: str | None) -> Iterator[str]:
    """The server to talk with: the one that was named, or one in this process."""
    if flags.server:
        if database is not None:
            fail("The server has a database of its own; leave out --database.")
        yield flags.server
        return
    given: dict[str, Any] = {**flags.model, "database": database, "host": "127.0.0.1", "port": 0, "require_key": False}
    settings = settings_of(given, flags.config)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    quiet_libraries(console.is_terminal)
    if console.is_terminal:
        console.print(f"Loading [bold]{settings.model}[/bold] ...")
    from idefics_chat.cli.chat_server import server_in_process

    with _or_told_of_the_other(server_in_process(settings)) as url:
        yield url


@contextlib.contextmanager
def _or_told_of_the_other(server: contextlib.AbstractContextManager[str]) -> Iterator[str]:
    """The server; where another one has the database, how to talk with that one."""
    try:
        with server as url:
            yield url
    except DatabaseTaken as taken:
        fail(
            f"Another server has the database {taken.file}; talk with that one by --server URL (serve shows it when it "
            "is ready), or give this chat another with --database."
        )


def _go_on_with(flags: TaskFlags, database: str | None) -> str:
    given = {"server": flags.server, **flags.model, "config": flags.config, "database": database}
    words = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(["idefics-chat", "chat", *words])


@contextlib.contextmanager
def _line_editing(person: bool) -> Iterator[None]:
    """Line editing, with what was typed before and the commands' names, where the terminal can do it."""
    try:
        import readline
    except ImportError:
        yield
        return
    if not person:
        yield
        return
    path = HISTORY_FILE.expanduser()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, state: [*(n for n in NAMES if text and n.startswith(text)), None][state])
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            readline.write_history_file(path)


def spoken(item: Json) -> str:
    """What was said in a message, on one line, with a mark before a user's."""
    parts = ("[image]" if part["type"] == "input_image" else part["text"] for part in item["content"])
    return ("> " if item["role"] == "user" else "") + " ".join(parts)


def _listed(conversation: Json) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation["created_at"]))
    return f"  {conversation['id']}  {made}  {printable(conversation.get('title') or '')}".rstrip()


def _quoted(word: str) -> str:
    """A word of the command line as it would be typed."""
    return f'"{word}"' if " " in word and image_path(f'"{word}"') else word
