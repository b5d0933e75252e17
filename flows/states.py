"""Final states of our flows, in addition to Prefect's own."""

from typing import Any

from prefect.client.schemas.objects import State, StateType

HELD = "Held"


def held(message: str) -> State[Any]:
    """The work is done, but a person has to approve its result.

    Prefect's UI colours a run by the type of its state only. Of the four final types, Completed is green, and Failed
    and Crashed say that something broke. Cancelled is grey and means that somebody or something stopped the run: here
    the publish gate. Events carry the state's name, so nothing that waits for `prefect.flow-run.Cancelled` is
    triggered. The process of the run exits with code 1 (`enrich run` with 3), and calling the flow without
    `return_state` raises a CancelledRun with the message.
    """
    return State(type=StateType.CANCELLED, name=HELD, message=message)
