"""One lease's state machine (RFC 2131 section 4.4), without I/O: time and randomness come in, effects go out.

::

    INIT -> SELECTING -> REQUESTING -> PROBING -> BOUND <-> RENEWING -> REBINDING -> INIT (expired)
    REBOOTING (a remembered lease is held, and asked about) -> BOUND, or INIT (refused)

PROBING is RFC 5227's question whether somebody else has the address, before its first use. A remembered lease is
held from the start, since its owner had it before, and goes on until its end where no server answers.
"""

import math
import random
from enum import Enum
from ipaddress import IPv4Address

from cloudprovider.dhcp import requests
from cloudprovider.dhcp.effects import Change, Changed, Effect, Ignored, Probe, Reason, Send, Trouble
from cloudprovider.dhcp.identity import ClientIdentity
from cloudprovider.dhcp.message import Message, MessageType, Operation, Option
from cloudprovider.dhcp.terms import InvalidTerms, Terms, read_terms
from cloudprovider.dhcp.timing import Timing


class State(Enum):
    """RFC 2131 figure 5; PROBING is ours."""

    INIT = "init"
    SELECTING = "selecting"
    REQUESTING = "requesting"
    PROBING = "probing"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"
    REBOOTING = "rebooting"


_AWAITING = frozenset({State.REQUESTING, State.RENEWING, State.REBINDING, State.REBOOTING})


class Machine:
    """A lease. Feed it with ``wake`` at ``deadline``, with messages and with the results of its probes.

    ``held`` is the lease as long as it may be used; ``trouble`` what is wrong, if anything is.
    """

    def __init__(
        self,
        identity: ClientIdentity,
        *,
        hostname: str = "",
        remembered: Terms | None = None,
        now: float,
        rng: random.Random,
        timing: Timing,
    ) -> None:
        self.hostname = hostname
        self.held: Terms | None = None
        self.trouble: Trouble | None = None
        self.state = State.INIT
        self._identity = identity
        self._rng = rng
        self._timing = timing
        self._next = now
        self._xid = 0
        self._began = now
        """When the first message of this exchange was sent: what ``secs`` counts from."""
        self._sent = now
        """When the last message was sent: what a lease's times count from (section 4.4.1)."""
        self._attempts = 0
        self._preferred: IPv4Address | None = None
        self._offer: Terms | None = None
        """What was offered (SELECTING, REQUESTING) or granted (PROBING)."""
        self._bad_offer = False
        self._foreign_nak: tuple[IPv4Address, str] | None = None
        self._refusals = 0
        self._from_link = False
        """Whose MAC frames come from: the other one's after each silence, and the one's that was answered for good."""
        if remembered is not None and now < remembered.expires:
            self.held = remembered
            self._enter(State.REBOOTING, now)
        elif remembered is not None:
            self._preferred = remembered.address

    @property
    def expiry(self) -> float:
        """When the lease ends unless it is renewed, in monotonic seconds."""
        return self.held.expires if self.held is not None else math.inf

    @property
    def deadline(self) -> float:
        """When to call ``wake`` next."""
        return min(self._next, self.expiry)

    def wake(self, now: float) -> list[Effect]:
        """Do what time has come for; nothing when called early."""
        if now >= self.expiry:
            return self._expire(now)
        if now < self._next:
            return []
        match self.state:
            case State.INIT:
                self._enter(State.SELECTING, now)
                return self._transmit(now)
            case State.SELECTING:
                if self._offer is not None:
                    return self._request(now, self._offer)
                if not self._bad_offer:
                    self.trouble = Trouble(reason=Reason.NO_ANSWER, since=self._began)
                return self._transmit(now)
            case State.REQUESTING:
                return self._request_again(now)
            case State.PROBING:
                return self._probe_again(now)
            case State.BOUND:
                return self._renew(now)
            case State.RENEWING | State.REBINDING | State.REBOOTING:
                return self._confirm_again(now)

    def receive(self, now: float, message: Message, source_mac: bytes) -> list[Effect]:
        """Take a message that came for this lease's hardware address. Raises MalformedPacket for broken options."""
        if message.operation is not Operation.REPLY:
            return [Ignored("not-a-reply")]
        if message.xid != self._xid:
            return [Ignored("unknown-xid")]
        if message.options.get(Option.CLIENT_IDENTIFIER, self._identity.client_id) != self._identity.client_id:
            return [Ignored("other-client")]  # echoed (RFC 6842)
        server = message.address(Option.SERVER_IDENTIFIER)
        if server is None:
            return [Ignored("no-server")]
        if message.kind is MessageType.OFFER and self.state is State.SELECTING:
            return self._offered(now, message, source_mac)
        if message.kind is MessageType.ACK and self.state in _AWAITING:
            return self._acknowledged(now, message, server, source_mac)
        if message.kind is MessageType.NAK and self.state in _AWAITING:
            return self._refused(now, server, message.text(Option.MESSAGE))
        return [Ignored("unasked")]

    def probed(self, now: float, address: IPv4Address, mac: str) -> list[Effect]:
        """The answer to a Probe: who else has the address; "" for nobody."""
        if self.state is not State.PROBING or self._offer is None or self._offer.address != address:
            return []
        if mac:
            return self._decline(now, self._offer, mac)
        return self._bind(self._offer, Change.BOUND)

    def probe_failed(self, now: float, error: str) -> list[Effect]:
        """A Probe could not be carried out: it is tried again."""
        if self.state is State.PROBING and self._offer is not None:
            address, server = self._offer.address, self._offer.server
            since = self.trouble.since if self.trouble and self.trouble.reason is Reason.PROBE_FAILED else now
            self.trouble = Trouble(
                reason=Reason.PROBE_FAILED, since=since, address=address, server=server, detail=error
            )
            self._next = now + self._timing.retransmission(self._attempts, self._rng)
        return []

    def conflict(self, now: float, mac: str) -> list[Effect]:
        """Somebody else was found to have the held address: give it up, and seek another."""
        if self.held is None:
            return []
        lost = Changed(Change.LOST, self.held)
        return [*self._decline(now, self.held, mac), lost]

    def release(self, now: float) -> list[Effect]:
        """The message that gives back what was granted, if anything was; the machine is not to be used any more."""
        granted = self.held or (self._offer if self.state in {State.REQUESTING, State.PROBING} else None)
        self._restart(now, math.inf)
        if granted is None:
            return []
        return [requests.release(self._identity, granted, self._rng, from_link=self._from_link)]

    # Messages

    def _offered(self, now: float, message: Message, source_mac: bytes) -> list[Effect]:
        try:
            offer = read_terms(message, sent=self._sent, server_mac=source_mac, rng=self._rng)
        except InvalidTerms as error:
            self._invalid(now, message, error)
            return [Ignored("invalid-offer")]
        if self._preferred is not None and offer.address != self._preferred:
            if self._offer is not None:
                return [Ignored("second-offer")]
            self._offer = offer
            self._next = min(self._next, now + self._timing.better_offer)
            return []
        return self._request(now, offer)

    def _acknowledged(self, now: float, message: Message, server: IPv4Address, source_mac: bytes) -> list[Effect]:
        asked = self._offer if self.state is State.REQUESTING else self.held
        if asked is None or (self.state in {State.REQUESTING, State.RENEWING} and server != asked.server):
            return [Ignored("other-server")]
        if message.yiaddr != asked.address:
            return [Ignored("other-address")]
        try:
            granted = read_terms(message, sent=self._sent, server_mac=source_mac, rng=self._rng)
        except InvalidTerms as error:
            self._invalid(now, message, error)
            return [Ignored("invalid-ack")]
        if self.state is not State.REQUESTING:
            return self._bind(granted, Change.RENEWED)
        self._offer = granted
        self._enter(State.PROBING, now)
        return self._probe_again(now)

    def _refused(self, now: float, server: IPv4Address, words: str) -> list[Effect]:
        asked = self._offer if self.state is State.REQUESTING else self.held
        if asked is None:
            return [Ignored("unasked")]
        if server != asked.server:
            if self.state in {State.REQUESTING, State.RENEWING}:
                return [Ignored("other-server")]
            # Any server on the LAN may say no here, also one that only does not know the lease of its neighbour:
            # the one that gave it is heard first.
            self._foreign_nak = (server, words)
            self._next = min(self._next, now + self._timing.foreign_nak)
            return []
        return self._give_up(now, server, words)

    def _invalid(self, now: float, message: Message, error: InvalidTerms) -> None:
        self._bad_offer = True
        self.trouble = Trouble(
            reason=Reason.INVALID_OFFER,
            since=self.trouble.since if self.trouble and self.trouble.reason is Reason.INVALID_OFFER else now,
            address=message.yiaddr,
            server=message.address(Option.SERVER_IDENTIFIER),
            expires=self.held.expires if self.held is not None else None,
            detail=str(error),
        )

    # Transitions

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        self._attempts = 0
        self._foreign_nak = None
        self._next = now

    def _restart(self, now: float, delay: float) -> None:
        self._enter(State.INIT, now + delay)
        self.held = self._offer = None

    def _request(self, now: float, offer: Terms) -> list[Effect]:
        self._offer = offer
        self._enter(State.REQUESTING, now)
        return self._transmit(now)

    def _request_again(self, now: float) -> list[Effect]:
        if self._offer is not None:
            self.trouble = Trouble(
                reason=Reason.NO_ANSWER, since=self._began, address=self._offer.address, server=self._offer.server
            )
        if self._attempts >= self._timing.tries:
            self._restart(now, 0)
            return self.wake(now)
        return self._transmit(now)

    def _probe_again(self, now: float) -> list[Effect]:
        if self._offer is None or now >= self._offer.expires:
            self._restart(now, 0)
            return self.wake(now)
        self._attempts += 1
        self._next = min(now + 2 * self._timing.probe_limit, self._offer.expires)
        return [Probe(self._offer.address)]

    def _bind(self, terms: Terms, change: Change) -> list[Effect]:
        self.held = terms
        self._enter(State.BOUND, terms.renew)
        self._offer = self._preferred = self.trouble = None
        self._refusals = 0
        return [Changed(change, terms)]

    def _renew(self, now: float) -> list[Effect]:
        """At T1, or later where the machine was busy rebooting."""
        if self.held is None:
            return []
        self._enter(State.REBINDING if now >= self.held.rebind else State.RENEWING, now)
        return self._transmit(now)

    def _confirm_again(self, now: float) -> list[Effect]:
        """RENEWING, REBINDING, REBOOTING: no answer yet."""
        if self.held is None:
            return []
        if self._foreign_nak is not None:
            return self._give_up(now, *self._foreign_nak)
        if self._attempts and not self._bad_offer:
            self.trouble = Trouble(
                reason=Reason.NO_ANSWER,
                since=self.trouble.since if self.trouble is not None else self._began,
                address=self.held.address,
                server=self.held.server,
                expires=self.held.expires,
            )
        if self.state is not State.REBINDING and now >= self.held.rebind:
            self._enter(State.REBINDING, now)
        elif self.state is State.REBOOTING and self._attempts >= self._timing.tries:
            self._enter(State.BOUND, self.held.renew)  # section 3.2, step 4: the lease goes on
            return self.wake(now)
        return self._transmit(now)

    def _expire(self, now: float) -> list[Effect]:
        lost = self.held
        if lost is None:
            return []
        since = self.trouble.since if self.trouble is not None else now
        self.trouble = Trouble(
            reason=Reason.LEASE_EXPIRED, since=since, address=lost.address, server=lost.server, expires=lost.expires
        )
        self._restart(now, 0)
        self._preferred = lost.address
        return [Changed(Change.LOST, lost)]

    def _give_up(self, now: float, server: IPv4Address, words: str) -> list[Effect]:
        """A server said no: begin anew, at once for the first time, later and later where it goes on so."""
        lost, asked = self.held, self.held or self._offer
        address = asked.address if asked is not None else None
        self.trouble = Trouble(reason=Reason.REFUSED, since=now, address=address, server=server, detail=words)
        delay = self._timing.retransmission(self._refusals, self._rng) if self._refusals else 0.0
        self._refusals += 1
        self._preferred = None
        self._restart(now, delay)
        return [Changed(Change.LOST, lost)] if lost is not None else []

    def _decline(self, now: float, terms: Terms, mac: str) -> list[Effect]:
        self.trouble = Trouble(
            reason=Reason.ADDRESS_CONFLICT, since=now, address=terms.address, server=terms.server, detail=mac
        )
        self._preferred = None
        self._restart(now, self._timing.decline_wait + self._rng.uniform(0, self._timing.jitter))
        return [requests.decline(self._identity, terms, self._rng, from_link=self._from_link)]

    # Transmission

    def _transmit(self, now: float) -> list[Effect]:
        """Send the message of this state, and set the time for the next one."""
        self._attempts += 1
        self._bad_offer = False
        if self._attempts == 1 and self.state is not State.REQUESTING:  # a REQUEST goes on with its offer's exchange
            self._xid = self._rng.getrandbits(32)
            self._began = now
        elif self._attempts > 1:
            self._from_link = not self._from_link
        self._sent = now
        self._next = now + self._wait(now)
        return [self._message(now)]

    def _wait(self, now: float) -> float:
        if self.held is not None and self.state is State.RENEWING:
            remaining, span = self.held.rebind - now, self.held.rebind - self.held.renew
        elif self.held is not None and self.state is State.REBINDING:
            remaining, span = self.held.expires - now, self.held.expires - self.held.rebind
        else:
            wait = self._timing.retransmission(self._attempts, self._rng)
            if self.held is None:
                return wait
            return min(wait, max(self.held.rebind - now, (self.held.expires - now) / 2))
        return min(self._timing.renewal(remaining, span, self._rng), remaining)

    def _message(self, now: float) -> Send:
        secs = min(int(now - self._began), 0xFFFF)
        call = requests.Call(self._identity, self._xid, secs, self.hostname, self._from_link)
        if self.state is State.SELECTING:
            return requests.discover(call, self._preferred)
        if self.state is State.REQUESTING and self._offer is not None:
            return requests.select(call, self._offer)
        if self.held is None:
            raise AssertionError(f"no lease is held in state {self.state}")
        if self.state is State.REBOOTING:
            return requests.reboot(call, self.held)
        if self.state is State.RENEWING:
            return requests.renew(call, self.held)
        return requests.rebind(call, self.held)
