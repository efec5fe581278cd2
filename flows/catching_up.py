"""Catching up: of the runs of a schedule that wait because none could start, the last one runs."""

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.states import Cancelled

GIVEN_WAY_TO = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.COMPLETED]


def give_way_to_newer() -> None:
    """Ends this flow run as cancelled where a later run of its schedule is due, is under way or has
    completed: its model would take the place of one from newer data.

    So are those between the two, which saves their starts. Runs that somebody started by hand
    neither give way nor are given way to, and neither does one that is tried again.

    Raises:
        Abort: this run has given way; Prefect ends its process without another word.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled or run.run_count > 1:
        return
    with get_client(sync_client=True) as client:
        newer = _due_after(run, client)
        if not newer:
            return
        last = newer[0]
        message = (
            "Left out: the run that the same schedule planned for "
            f"{last.expected_start_time:%Y-%m-%d %H:%M:%S} UTC {_how_far(last)}."
        )
        for passed in (run, *newer[1:]):
            # one that a worker has taken gives way by itself
            if passed is run or (passed.state and passed.state.is_scheduled()):
                client.set_flow_run_state(passed.id, Cancelled(message=message), force=True)
    raise Abort(message)


def _how_far(run: FlowRun) -> str:
    if run.state and run.state.is_completed():
        return "has completed"
    return "is under way" if run.state and run.state.is_running() else "is due as well"


def _due_after(run: FlowRun, client: SyncPrefectClient) -> list[FlowRun]:
    """Runs of the same schedule that were to start later, unless they failed; the last first."""
    later = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=GIVEN_WAY_TO)),
            expected_start_time=FlowRunFilterExpectedStartTime(
                after_=run.expected_start_time, before_=datetime.now(UTC)
            ),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    return [other for other in later if other.id != run.id and _schedule(other) == _schedule(run)]


def _schedule(run: FlowRun) -> UUID | None:
    return run.created_by.id if run.auto_scheduled and run.created_by else None
