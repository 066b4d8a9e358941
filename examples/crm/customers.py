"""What the CRM knows: customers, and notes about them."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SupportPlan(StrEnum):
    STARTER = "starter"
    SCALE = "scale"
    ENTERPRISE = "enterprise"


class Customer(Record):
    """A person at an account, and what the account has bought."""

    id: Annotated[str, Field(pattern=r"^C-\d+$", description="The customer's id, such as C-1001.")]
    name: str
    email: str
    account: str
    plan: SupportPlan
    seats: Annotated[int, Field(ge=1)]
    timezone: Annotated[str, Field(description="IANA name, such as Europe/Vienna.")]
    account_manager: str
    renews_on: date


class Customers(Record):
    """Customers that were found."""

    customers: list[Customer]
    total: Annotated[int, Field(ge=0)]


class NewNote(Record):
    """What is to be written down."""

    text: Annotated[str, Field(min_length=1, max_length=5_000)]
    articles: Annotated[list[str], Field(max_length=20, description="Articles of the knowledge base it is about.")] = []
    call_at: Annotated[datetime | None, Field(description="When the customer is to be called back.")] = None


class Note(NewNote):
    """A note that was taken."""

    id: Annotated[str, Field(description="The note's id, such as N-1.")]
    customer_id: str
    created_at: datetime


class Notes(Record):
    """The notes about a customer, oldest first."""

    notes: list[Note]


def _customer(
    number: int, name: str, email: str, *, account: str, plan: SupportPlan, seats: int, timezone: str
) -> Customer:
    return Customer(
        id=f"C-{number}",
        name=name,
        email=email,
        account=account,
        plan=plan,
        seats=seats,
        timezone=timezone,
        account_manager="Kim Aldana",
        renews_on=date(2027, 1 + number % 12, 1),
    )


CUSTOMERS = (
    _customer(
        1001,
        "Ana Petrescu",
        "ana.petrescu@acme.example",
        account="Acme",
        plan=SupportPlan.SCALE,
        seats=40,
        timezone="Europe/Bucharest",
    ),
    _customer(
        1002,
        "Jonas Weidmann",
        "jonas@acme.example",
        account="Acme",
        plan=SupportPlan.SCALE,
        seats=40,
        timezone="Europe/Zurich",
    ),
    _customer(
        1003,
        "Mirela Dobos",
        "m.dobos@globex.example",
        account="Globex",
        plan=SupportPlan.STARTER,
        seats=5,
        timezone="Europe/Budapest",
    ),
    _customer(
        1004,
        "Dana Osterfeld",
        "dana@osterfeld.example",
        account="Osterfeld",
        plan=SupportPlan.ENTERPRISE,
        seats=220,
        timezone="America/New_York",
    ),
    _customer(
        1005,
        "Ravi Menon",
        "ravi@quillfeather.example",
        account="Quillfeather",
        plan=SupportPlan.SCALE,
        seats=75,
        timezone="Asia/Kolkata",
    ),
)
