//! Who a certificate speaks for: its one DNS name, read from certificates that the TLS layer has already verified.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::PkiError;
use crate::model::HostId;

/// What an operator's DNS name ends in. A host may not have such a name.
pub const OPERATOR_SUFFIX: &str = ".operator.decamp";

/// Longest name of an operator.
const OPERATOR_NAME_MAX: usize = 64;

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// An agent.
    Host(HostId),
    /// A person or a program that commands agents; the name without [`OPERATOR_SUFFIX`].
    Operator(String),
}

impl std::fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host {name}"),
            Self::Operator(name) => write!(f, "operator {name}"),
        }
    }
}

impl PeerIdentity {
    /// A host by this name.
    ///
    /// # Errors
    /// [`PkiError::Name`] for what cannot stand in a certificate or belongs to operators. DNS names ignore case and
    /// [`HostId`] does not, so only lower case is allowed: two hosts can then not differ by case alone.
    pub fn host(name: &str) -> Result<Self, PkiError> {
        let bad = |why: &str| PkiError::Name { name: short(name), why: str::to_owned(why) };
        if format!(".{name}").ends_with(OPERATOR_SUFFIX) {
            return Err(bad("names under operator.decamp are for operators"));
        }
        if name.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(bad("host names are written in lower case"));
        }
        if rustls_pki_types::DnsName::try_from(name).is_err() {
            return Err(bad("it is not a DNS name"));
        }
        HostId::try_from(name).map(Self::Host).map_err(|e| bad(e.why))
    }

    /// An operator by this name (without the suffix).
    ///
    /// # Errors
    /// [`PkiError::Name`] for anything but lower-case letters, digits, `-` and `_`, at most 64 of them.
    pub fn operator(name: &str) -> Result<Self, PkiError> {
        let bad = |why: &str| PkiError::Name { name: short(name), why: str::to_owned(why) };
        if name.is_empty() || name.len() > OPERATOR_NAME_MAX {
            return Err(bad("an operator's name has 1 to 64 characters"));
        }
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_') {
            return Err(bad("an operator's name is made of lower-case letters, digits, - and _"));
        }
        if rustls_pki_types::DnsName::try_from(format!("{name}{OPERATOR_SUFFIX}")).is_err() {
            return Err(bad("it cannot be part of a DNS name"));
        }
        Ok(Self::Operator(name.to_owned()))
    }

    /// The DNS name that stands in the certificate.
    #[must_use]
    pub fn dns_name(&self) -> String {
        match self {
            Self::Host(name) => name.as_str().to_owned(),
            Self::Operator(name) => format!("{name}{OPERATOR_SUFFIX}"),
        }
    }
}

/// A name as evidence in an error: bounded, because a peer may have chosen it.
fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

/// Who holds this certificate, given in DER. It says nothing about whether the certificate is valid: ask TLS first.
///
/// # Errors
/// [`PkiError::Undecodable`], [`PkiError::NotOneName`] (several names would let the holder choose who it is), or
/// [`PkiError::Name`] for a name that is neither a host's nor an operator's, a wildcard for example.
pub fn peer_identity(certificate: &[u8]) -> Result<PeerIdentity, PkiError> {
    let undecodable = |e: &dyn std::fmt::Display| PkiError::Undecodable { why: e.to_string() };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| undecodable(&e))?;
    let names = parsed.subject_alternative_name().map_err(|e| undecodable(&e))?;
    let dns: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None })
        .collect();
    let [name] = dns[..] else {
        return Err(PkiError::NotOneName { names: dns.into_iter().take(4).map(short).collect() });
    };
    let name = name.to_ascii_lowercase();
    match name.strip_suffix(OPERATOR_SUFFIX) {
        Some(operator) => PeerIdentity::operator(operator),
        None => PeerIdentity::host(&name),
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn one_name_is_one_identity() {
        let host = peer_identity(&certificate(&["node-a", "10.0.0.1"])).unwrap();
        assert_eq!(host, PeerIdentity::Host(HostId::try_from("node-a").unwrap()));
        let upper = peer_identity(&certificate(&["Node-A"])).unwrap();
        assert_eq!(upper, host, "DNS names ignore case");
        let operator = peer_identity(&certificate(&["alice.operator.decamp"])).unwrap();
        assert_eq!(operator, PeerIdentity::Operator("alice".into()));
    }

    #[test]
    fn a_choice_of_names_is_refused() {
        assert!(matches!(
            peer_identity(&certificate(&["node-a", "node-b"])),
            Err(PkiError::NotOneName { .. })
        ));
        assert!(matches!(peer_identity(&certificate(&["10.0.0.1"])), Err(PkiError::NotOneName { .. })));
        assert!(matches!(peer_identity(&certificate(&[])), Err(PkiError::NotOneName { .. })));
    }

    #[test]
    fn names_that_are_no_identity_are_refused() {
        for bad in ["*.example.org", ".operator.decamp", "a.b.operator.decamp", "x/y"] {
            assert!(matches!(peer_identity(&certificate(&[bad])), Err(PkiError::Name { .. })), "{bad}");
        }
        for bad in ["operator.decamp", "x.operator.decamp", "Node", "a..b", "", "../x", "a b"] {
            assert!(PeerIdentity::host(bad).is_err(), "{bad}");
        }
        for bad in ["", "Alice", "a.b", "a/b", "*"] {
            assert!(PeerIdentity::operator(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        let good = certificate(&["node-a"]);
        for length in 0..good.len() {
            assert!(peer_identity(&good[..length]).is_err(), "cut at {length}");
        }
    }
}
