"""The states in which our flows end, beside Prefect's own."""

from typing import Any

from prefect.client.schemas.objects import State, StateType

HELD = "Held"


def held(message: str) -> State[Any]:
    """The work is done, but a person has to approve its result.

    Prefect's UI colours a run by the type of its state alone. Of the four types that are final, Completed is green, and
    Failed and Crashed say that something broke; Cancelled is grey, and stands for what somebody or something stopped:
    here the publish gate. Events carry the name, so whatever waits for `prefect.flow-run.Cancelled` hears nothing. The
    process of the run exits with code 1, as `enrich run` does with 3, and who calls the flow without `return_state`
    gets a CancelledRun with the message.
    """
    return State(type=StateType.CANCELLED, name=HELD, message=message)
