"""What a standing Prefect server does by itself: a silent run is told as crashed, and a run that
went wrong is told to people. Putting an automation there again changes the one that is there."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL, get_current_settings

from flows.states import DIED
from tasks.engine.errors import UserError, listing, nearest

Item = TypeVar("Item")

FLOW = "boostline-train"
PAGE = 100  # of what the server lists at once; it allows 200
WATCH = "boostline: a silent training has crashed"
HEARTBEAT = "prefect.flow-run.heartbeat"
WATCHED = "boostline-watched"
HEARTBEAT_SECONDS = 30
SILENCE_SECONDS = 100
WRONG = ("Failed", "Crashed", "TimedOut", "Late")

SUBJECT = (
    "{{ flow_run.state.name }}: {% if deployment %}{{ flow.name }}/{{ deployment.name }}"
    "{% else %}{{ flow.name }}, run by hand{% endif %}"
)
BODY = (
    "The run {{ flow_run.name }}, due at {{ flow_run.expected_start_time.strftime('%Y-%m-%d %H:%M')"
    " }} UTC, is {{ flow_run.state.name }}. {% if flow_run.state.name == 'Late' %}It has not begun:"
    " see whether a worker of its work pool runs.{% else %}{{ flow_run.state.message }}{% endif %}"
    "\n{{ flow_run|ui_url or 'PAGES/runs/flow-run/' ~ flow_run.id }}"
)


def watch_this_run() -> tuple[str, ...]:
    """Watches silent runs, and returns the tags by which a run of this process asks for that.

    None where its heartbeats are slower than the limit allows.
    """
    frequency = get_current_settings().flows.heartbeat_frequency
    if frequency is None or frequency > HEARTBEAT_SECONDS:
        return ()
    watch_silent_runs()
    return (WATCHED,)


def watch_silent_runs() -> None:
    """On a standing server: a training that sends no heartbeat any more has crashed.

    A flow sends heartbeats from a thread of its own, whatever it is doing. The limit leaves room
    for a minute in which the server itself is away.
    """
    ended = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}
    watch = AutomationCore(
        name=WATCH,
        description="Made by Boostline: a training whose process is gone is told as crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ended},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.role": "tag",
                "prefect.resource.id": f"prefect.tag.{WATCHED}",
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=DIED)],
    )
    with get_client(sync_client=True) as client:
        _put(watch, client)


def tell_of_wrong_runs(blocks: Sequence[str], deployment: str | None = None) -> str:
    """Has runs that failed, crashed or are late told by notification blocks; the name of it.

    Args:
        blocks: as in `slack-webhook/ops`, type and name. They take the place of those of before.
        deployment: name of the deployment whose runs are meant, without the flow's; every training
            of the server where it is None.

    Raises:
        UserError: there is no such block or deployment, or the block can't notify.
    """
    with get_client(sync_client=True) as client:
        pages = (PREFECT_UI_URL.value() or "").rstrip("/")
        meant = {"prefect.resource.role": "flow", "prefect.resource.name": FLOW}
        if deployment is not None:
            found = _deployment_id(deployment, client)
            meant = {
                "prefect.resource.role": "deployment",
                "prefect.resource.id": f"prefect.deployment.{found}",
            }
        actions = [
            SendNotification(
                block_document_id=_block_id(block, client),
                subject=SUBJECT,
                body=BODY.replace("PAGES", pages),
            )
            for block in blocks
        ]
        name = f"boostline: {deployment or 'any training'} went wrong"
        telling = AutomationCore(
            name=name,
            description=f"Made by Boostline: told to {listing(blocks)}.",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{state}" for state in WRONG},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=meant,
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[*actions],
        )
        _put(telling, client)
    return name


def _put(automation: AutomationCore, client: SyncPrefectClient) -> None:
    """In the place of the one of its name, where it differs."""
    known = client.read_automations_by_name(automation.name)
    if not known:
        client.create_automation(automation)
    elif (
        AutomationCore(**known[0].model_dump(include=set(AutomationCore.model_fields)))
        != automation
    ):
        client.update_automation(known[0].id, automation)


def check_blocks(blocks: Sequence[str]) -> None:
    """Raises UserError where one is not on the server, or can't notify."""
    if blocks:
        with get_client(sync_client=True) as client:
            for block in blocks:
                _block_id(block, client)


def _block_id(block: str, client: SyncPrefectClient) -> UUID:
    kind, slash, name = block.partition("/")
    if not (kind and slash and name):
        raise UserError(
            f"{block!r} names no block. Write its type and its name, as in slack-webhook/ops."
        )
    documents = [
        (f"{document.block_type.slug}/{document.name}", document)
        for document in _all(partial(client.read_block_documents, include_secrets=False))
        if document.block_type and document.block_schema
    ]
    notifying = [
        shown
        for shown, document in documents
        if document.block_schema and "notify" in document.block_schema.capabilities
    ]
    found = next((document.id for shown, document in documents if shown == block), None)
    if found and block in notifying:
        return found
    there = f"Those of this server: {listing(notifying)}." if notifying else "It has none yet."
    if found:
        raise UserError(f"The block {block!r} can't notify anyone. {there}")
    raise UserError(
        f"The Prefect server has no block {block!r} that notifies.{nearest(block, notifying)} "
        f"{there} Make one on its page Blocks, of the type Slack Webhook, Sendgrid Email or Custom "
        "Webhook, say."
    )


def _deployment_id(name: str, client: SyncPrefectClient) -> UUID:
    try:
        return client.read_deployment_by_name(f"{FLOW}/{name}").id
    except ObjectNotFound:
        known = [found.name for found in deployments_of(client)]
        there = f"There are: {listing(known)}." if known else "It has none yet."
        raise UserError(
            f"The Prefect server has no deployment {FLOW}/{name}.{nearest(name, known)} {there}"
        ) from None


def deployments_of(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The server's deployments of the train flow."""
    of_flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    return _all(partial(client.read_deployments, flow_filter=of_flow))


def _all(read: Callable[..., list[Item]]) -> list[Item]:
    """Of a list that the server gives in pages."""
    found: list[Item] = []
    while page := read(limit=PAGE, offset=len(found)):
        found += page
        if len(page) < PAGE:
            break
    return found
