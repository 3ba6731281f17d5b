"""Receipts of charges, on the private side: with them a ledger that was deleted or rolled back is noticed.

The ledger is one file, which may lie anywhere and may be put back from an older copy. So the private side keeps a
receipt of a charge, durably, before the first noisy number of its release exists, and no further charge is made to a
ledger that lacks one of them. As an entry's hash pins all entries before it, the receipt of a charge takes the place of
those that its ledger was seen to hold.

A receipt says nothing that the ledger does not say. All data sets of an account share them, however their records are
read (`Dataset.receipts_dir`). Releases that were never charged under their own id have none, nor has research.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import write_bytes
from dpsw_ray.privacy.ledger_log import Receipt
from dpsw_ray.private.sealing import sealed

__all__ = ["ReceiptStore", "Receipts", "stored_receipts"]


class ReceiptStore:
    """The receipts in a folder, a file for each, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        """Points at the folder; nothing is read yet."""
        self.folder = Path(folder)

    def of(self, account: str) -> tuple[Receipt, ...]:
        """The receipts of an account's charges that no later one stands for.

        Raises:
            UserError: one of them is damaged.
            OSError: one of them cannot be read.
        """
        found = [self._read(path) for path in sorted(self.folder.glob("*.json"))]
        return tuple(receipt for receipt in found if receipt is not None and receipt.account == account)

    def keep(self, receipt: Receipt, instead: Sequence[Receipt] = ()) -> None:
        """Makes a receipt durable, and removes those that it stands for.

        Args:
            receipt: of a charge.
            instead: of earlier charges, which its ledger was seen to hold.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = json.dumps(dataclasses.asdict(receipt)).encode()
        write_bytes(self._path(receipt), content, mode=0o600)
        for earlier in instead:
            if earlier != receipt and earlier.account == receipt.account and earlier.seq < receipt.seq:
                self._path(earlier).unlink(missing_ok=True)

    def _path(self, receipt: Receipt) -> Path:
        return self.folder / f"{receipt.entry_hash}.json"

    def _read(self, path: Path) -> Receipt | None:
        try:
            values = json.loads(path.read_bytes())
            receipt = Receipt(**values)
            if path != self._path(receipt) or type(receipt.account) is not str or receipt.seq < 1:
                raise ValueError
        except FileNotFoundError:  # another charge's receipt has taken its place
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}, a receipt of a charge to the privacy ledger, is damaged: restore it from a copy."
            ) from None
        return receipt


class Receipts:
    """What every worker of the private side does about them; rank 0 alone looks at the folder."""

    rank: int
    receipt_store: ReceiptStore

    @sealed("looking for receipts of charges")
    def receipts(self, account: str) -> tuple[Receipt, ...]:
        """On rank 0 the receipts of an account's charges."""
        return () if self.rank else self.receipt_store.of(account)

    @sealed("keeping the receipt of a charge")
    def keep_receipt(self, receipt: Receipt, instead: Sequence[Receipt]) -> None:
        """On rank 0 makes a receipt durable: called after the charge, before anything noisy exists."""
        if self.rank == 0:
            self.receipt_store.keep(receipt, instead)


@sealed("looking for receipts of charges")
def stored_receipts(folder: Path, account: str) -> tuple[Receipt, ...]:
    """The receipts in `Dataset.receipts_dir` of an account's charges."""
    return ReceiptStore(folder).of(account)
