"""sprig's functions that a prompt's template has no business with, and why."""

from __future__ import annotations

from collections.abc import Mapping

_OUTSIDE = "it reaches outside of the template"
_SECRETS = "it makes keys or passwords, which have no place in a prompt"
_VERSIONS = "comparing version numbers is not supported; compare the texts, or their parts with splitList"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("env", "expandenv", "getHostByName"), _OUTSIDE),
    **dict.fromkeys(
        (
            "bcrypt",
            "htpasswd",
            "derivePassword",
            "genPrivateKey",
            "genCA",
            "genCAWithKey",
            "genSelfSignedCert",
            "genSelfSignedCertWithKey",
            "genSignedCert",
            "genSignedCertWithKey",
            "buildCustomCert",
            "encryptAES",
            "decryptAES",
        ),
        _SECRETS,
    ),
    **dict.fromkeys(("semver", "semverCompare"), _VERSIONS),
}
