"""Accountants behind one interface, and the account of a run.

What is reported is always an upper bound: an estimate may lie below the truth.
"""

from dpsw_ray.privacy.accountants.account import ACCOUNTANTS, Account, Bound, account, bound, compose_mu
from dpsw_ray.privacy.accountants.analytic import GaussianAccountant
from dpsw_ray.privacy.accountants.base import Accountant
from dpsw_ray.privacy.accountants.pld import PldAccountant
from dpsw_ray.privacy.accountants.prv import PrvAccountant
from dpsw_ray.privacy.accountants.rdp import RdpAccountant, rdp_budget, rdp_curve
from dpsw_ray.privacy.events import common_unit
from dpsw_ray.privacy.gaussian import AccountingError, EpsilonBounds

__all__ = [
    "ACCOUNTANTS",
    "Account",
    "Accountant",
    "AccountingError",
    "Bound",
    "EpsilonBounds",
    "GaussianAccountant",
    "PldAccountant",
    "PrvAccountant",
    "RdpAccountant",
    "account",
    "bound",
    "common_unit",
    "compose_mu",
    "rdp_budget",
    "rdp_curve",
]
