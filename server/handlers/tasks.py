"""Creating tasks and changing their course: createTask and its graph form, schedule, rerun, cancel,
priority (queue.md 3.4, 3.5)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import datetime

from server import definitions
from server.call import Call
from server.codec import pieces
from server.domain import graphs, priority
from server.errors import BadRequest, InputError, QueueError, RequestConflict, ResourceNotFound, Violation
from server.handlers.standing import read_standing
from server.transitions import creating, ending, prioritizing, scheduling
from server.transitions.creating import NewTask
from server.transitions.facts import TaskFacts
from server.views import serialized_status, status_message
from tcqueue.v1.task_pb2 import (
    CancelTaskRequest,
    CancelTaskResponse,
    ChangeTaskPriorityRequest,
    ChangeTaskPriorityResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    CreateTasksRequest,
    CreateTasksResponse,
    DefineTaskRequest,
    DefineTaskResponse,
    RerunTaskRequest,
    RerunTaskResponse,
    ScheduleTaskRequest,
    ScheduleTaskResponse,
    TaskDefinition,
)

_STATUSES = pieces.tag(CreateTasksResponse.STATUSES_FIELD_NUMBER)

#: Most runs a task may have (queue.md 8.9).
MAX_RUNS = 50


async def create_task(call: Call, request: CreateTaskRequest) -> CreateTaskResponse:
    """Creates a task, or finds it created alike."""
    item = prepare(call, request.task_id, request.task)
    facts = await call.services.creations.submit(item)
    return CreateTaskResponse(status=status_message(facts, request.task))


async def define_task(call: Call, request: DefineTaskRequest) -> DefineTaskResponse:
    """Creates a task that waits for scheduleTask, or finds it created alike."""
    task = holding_itself_back(request.task_id, request.task)
    facts = await call.services.creations.submit(prepare(call, request.task_id, task))
    return DefineTaskResponse(status=status_message(facts, task))


def holding_itself_back(task_id: str, task: TaskDefinition) -> TaskDefinition:
    """Makes a task one of its own dependencies, in place: nothing but scheduleTask starts it."""
    if task_id not in task.dependencies:
        task.dependencies.append(task_id)
    return task


async def create_tasks(call: Call, request: CreateTasksRequest) -> CreateTasksResponse:
    """Creates a graph of tasks, all or none."""
    ids = [task.task_id for task in request.tasks]
    if len(set(ids)) != len(ids):
        repeated = next(task_id for task_id in ids if ids.count(task_id) > 1)
        raise InputError(f"task {repeated} stands in the call more than once", taskId=repeated)
    edges = {task.task_id: task.task.dependencies for task in request.tasks}
    cycle = graphs.find_cycle(edges) if any(edges.values()) else None
    if cycle is not None:
        path = " -> ".join(cycle if len(cycle) <= 12 else [*cycle[:6], "...", *cycle[-5:]])
        raise InputError(f"the dependencies form a cycle: {path}", cycle=" ".join(cycle[:200]))
    items = []
    now = call.services.clock.now()
    allowed: set[Hashable] = set()
    for index, task in enumerate(request.tasks):
        try:
            definitions.check_rules(task.task)
            items.append(prepare(call, task.task_id, task.task, now=now, allowed=allowed))
        except QueueError as e:
            _name_task(e, index, task.task_id)
            raise
    try:
        facts = await creating.create_graph(call.services.machine, items, definitions.same)
    except QueueError as e:
        if (refused := e.details.get("taskId")) in ids:
            _name_task(e, ids.index(refused), refused)
        raise
    statuses = [serialized_status(f, task.task) for f, task in zip(facts, request.tasks, strict=True)]
    return CreateTasksResponse.FromString(pieces.repeated(_STATUSES, statuses))


def _name_task(error: QueueError, index: int, task_id: str) -> None:
    """Makes an error about one task one about a task of many."""
    error.details = {**error.details, "taskId": task_id, "index": str(index)}
    if isinstance(error, BadRequest):
        found = error.violations or [Violation("task", error.message)]
        error.violations = [Violation(f"tasks[{index}].{v.field}", v.description) for v in found]
        error.message = f"tasks[{index}]: {error.message}"


def prepare(
    call: Call,
    task_id: str,
    task: TaskDefinition,
    *,
    now: datetime | None = None,
    allowed: set[Hashable] | None = None,
    max_deadline_days: float | None = None,
) -> NewTask:
    """Everything creation checks before it needs the database, in the order of queue.md 2.2. For the many
    tasks of one call the time is asked `now`, once, and `allowed` remembers what has been authorised: most
    ask for the same. How far ahead a deadline may lie is a setting, unless given."""
    settings = call.services.settings
    if max_deadline_days is None:
        max_deadline_days = settings.max_task_deadline_days
    definitions.resolve_queue(task)
    if len(task.dependencies) > settings.task_max_dependencies:
        raise InputError(
            f"a task may have at most {settings.task_max_dependencies} dependencies, "
            f"not {len(task.dependencies)}"
        )
    definitions.fill_defaults(task_id, task)
    asked = (
        tuple(task.scopes[:]),
        tuple(task.routes[:]),
        task.project_id,
        task.scheduler_id,
        task.priority,
        task.task_queue_id,
    )
    if allowed is None or asked not in allowed:
        call.authorize(
            {
                "scopes": task.scopes,
                "routes": task.routes,
                "projectId": task.project_id,
                "schedulerId": task.scheduler_id,
                "priorities": definitions.create_priorities(task.priority),
                "provisionerId": task.provisioner_id,
                "workerType": task.worker_type,
            }
        )
        if allowed is not None:
            allowed.add(asked)
    definitions.check_dates(task, now or call.services.clock.now(), max_deadline_days)
    definitions.check_scopes(task)
    return definitions.new_task(task_id, task)


async def schedule_task(call: Call, request: ScheduleTaskRequest) -> ScheduleTaskResponse:
    """Makes an unscheduled task pending."""
    await _may_change(call, request.task_id)
    facts = await scheduling.schedule_tasks(call.services.machine, [request.task_id])
    return ScheduleTaskResponse(status=status_message(_known(facts, request.task_id)))


async def rerun_task(call: Call, request: RerunTaskRequest) -> RerunTaskResponse:
    """Gives a resolved or unscheduled task another run."""
    await _may_change(call, request.task_id)
    facts = _known(await scheduling.rerun_tasks(call.services.machine, [request.task_id]), request.task_id)
    if facts.state not in ("pending", "running"):
        if len(facts.runs) >= MAX_RUNS:
            raise RequestConflict(
                f"task {request.task_id} has had {len(facts.runs)} runs and gets no more",
                taskId=request.task_id,
            )
        raise _past_deadline(request.task_id)
    return RerunTaskResponse(status=status_message(facts))


async def cancel_task(call: Call, request: CancelTaskRequest) -> CancelTaskResponse:
    """Cancels an unresolved task."""
    await _may_change(call, request.task_id)
    facts, _ = await ending.cancel_tasks(call.services.machine, [request.task_id])
    return CancelTaskResponse(status=status_message(_known(facts, request.task_id)))


async def change_task_priority(call: Call, request: ChangeTaskPriorityRequest) -> ChangeTaskPriorityResponse:
    """Changes the priority of a task that was never resolved."""
    task = await read_standing(call, request.task_id)
    call.authorize({"taskId": request.task_id, "taskQueueId": task.task_queue_id})
    if task.deadline_reached:
        raise _past_deadline(request.task_id)
    changed = await prioritizing.change_priorities(
        call.services.machine, [request.task_id], request.new_priority
    )
    facts = changed.get(request.task_id)
    if facts is None:
        raise RequestConflict(
            f"the priority of task {request.task_id} cannot be changed: it has been resolved, its deadline "
            f"has passed, or it is {priority.NAMES[request.new_priority]} already",
            taskId=request.task_id,
        )
    return ChangeTaskPriorityResponse(status=status_message(facts))


async def _may_change(call: Call, task_id: str) -> None:
    """404, then 403, then 409 past the deadline: the checks of schedule, rerun and cancel."""
    task = await read_standing(call, task_id)
    call.authorize(
        {
            "taskId": task_id,
            "schedulerId": task.scheduler_id,
            "taskGroupId": task.task_group_id,
            "projectId": task.project_id,
        }
    )
    if task.past_deadline:
        raise _past_deadline(task_id)


def _known(facts: Mapping[str, TaskFacts], task_id: str) -> TaskFacts:
    try:
        return facts[task_id]
    except KeyError:
        raise ResourceNotFound(f"task {task_id} does not exist", taskId=task_id) from None


def _past_deadline(task_id: str) -> RequestConflict:
    return RequestConflict(f"the deadline of task {task_id} has passed", taskId=task_id)
