//! Making a certificate authority and certificates: what `decamp pki init` and `decamp pki issue` do.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::error::PkiError;
use super::files::{publish, read, read_key};
use super::identity::{certificates, not_after_unix_s};
use super::name::PeerIdentity;
use crate::model::HostId;

const DAY: Duration = Duration::from_secs(86_400);
/// Longest validity that can be asked for, a hundred years.
const DAYS_MAX: u64 = 36_525;
/// Certificates begin this much in the past, so that a host whose clock is a little behind accepts them at once.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// How long a certificate is good for, from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity(pub Duration);

impl Default for Validity {
    /// Ten years: replacing the CA means visiting every host. A certificate never outlives its CA, whatever is asked.
    fn default() -> Self {
        Self(3653 * DAY)
    }
}

/// Files that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Certificate, PEM, mode 0644.
    pub cert: PathBuf,
    /// Private key, PEM, mode 0600.
    pub key: PathBuf,
}

impl Issued {
    fn below(dir: &Path, name: &str) -> Self {
        Self { cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }
}

/// Makes a CA (ECDSA P-256): `dir/ca.crt` and `dir/ca.key`. The directory is made for us alone; one that exists must not be
/// writable by others.
///
/// # Errors
/// [`PkiError::Exists`] without `force`; the others as they say.
pub fn init(dir: &Path, validity: Validity, force: bool) -> Result<Issued, PkiError> {
    let failed = |source| PkiError::Generate { what: "the CA", source };
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = params(validity, u64::MAX)?;
    // Two CAs must not carry one name: with equal names a certificate of the other CA would be reported as a forged
    // signature instead of an unknown issuer.
    let unique = uuid::Uuid::new_v4().simple().to_string();
    params.distinguished_name.push(DnType::CommonName, format!("decamp CA {}", &unique[..12]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key).map_err(failed)?;
    let issued = Issued::below(dir, "ca");
    publish(&issued, &cert.pem(), &key.serialize_pem(), force)?;
    Ok(issued)
}

/// Makes a host's certificate and key: `dir/HOST.crt` and `dir/HOST.key`, good for both ends of a connection. `addresses`
/// are those by which its gRPC port will be called besides its name.
///
/// # Errors
/// [`PkiError::Io`] when there is no CA yet; [`PkiError::Exists`] without `force`; [`PkiError::Name`] for a name that
/// cannot be a host's; the others as they say.
pub fn issue_host(
    dir: &Path,
    host: &HostId,
    addresses: &[IpAddr],
    validity: Validity,
    force: bool,
) -> Result<Issued, PkiError> {
    if host.as_str() == "ca" {
        let why = "its files would be taken for the CA's".to_owned();
        return Err(PkiError::Name { name: host.to_string(), why });
    }
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let subject = PeerIdentity::host(host.as_str())?;
    issue(dir, host.as_str(), &subject, addresses, usages, validity, force)
}

/// Makes an operator's certificate and key: `dir/NAME.operator.crt` and `dir/NAME.operator.key`, good for the calling end
/// only.
///
/// # Errors
/// As [`issue_host`].
pub fn issue_operator(dir: &Path, name: &str, validity: Validity, force: bool) -> Result<Issued, PkiError> {
    let subject = PeerIdentity::operator(name)?;
    let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(dir, &format!("{name}.operator"), &subject, &[], usages, validity, force)
}

fn issue(
    dir: &Path,
    file_name: &str,
    subject: &PeerIdentity,
    addresses: &[IpAddr],
    usages: Vec<ExtendedKeyUsagePurpose>,
    validity: Validity,
    force: bool,
) -> Result<Issued, PkiError> {
    let failed = |source| PkiError::Generate { what: "the certificate", source };
    let ca = Issued::below(dir, "ca");
    if !ca.cert.exists() {
        return Err(PkiError::NoCa { path: ca.cert });
    }
    let ca_pem = read(&ca.cert)?;
    let ca_key = KeyPair::from_pem(&read_key(&ca.key)?).map_err(failed)?;
    let ca_not_after_unix_s = not_after_unix_s(&certificates(&ca_pem, &ca.cert)?[0])?;
    if ca_not_after_unix_s <= unix_s(SystemTime::now()) {
        return Err(PkiError::CaExpired { path: ca.cert });
    }
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(failed)?;

    let mut params = params(validity, ca_not_after_unix_s)?;
    let dns = subject.dns_name();
    params.distinguished_name.push(DnType::CommonName, common_name(&dns));
    params.subject_alt_names.push(SanType::DnsName(dns.try_into().map_err(failed)?));
    params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let cert = params.signed_by(&key, &issuer).map_err(failed)?;
    let issued = Issued::below(dir, file_name);
    publish(&issued, &cert.pem(), &key.serialize_pem(), force)?;
    Ok(issued)
}

/// Parameters valid from now, but not beyond `latest_unix_s`.
fn params(validity: Validity, latest_unix_s: u64) -> Result<CertificateParams, PkiError> {
    let days = validity.0.as_secs() / DAY.as_secs();
    if days == 0 || days > DAYS_MAX {
        return Err(PkiError::BadValidity { days, max: DAYS_MAX });
    }
    let now = SystemTime::now();
    let not_after_unix_s = unix_s(now + validity.0).min(latest_unix_s);
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after_unix_s)).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

/// RFC 5280 allows 64 characters; the name that counts is the DNS name beside it.
fn common_name(dns: &str) -> String {
    dns.chars().take(64).collect()
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
