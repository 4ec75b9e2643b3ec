//! Making a certificate authority and certificates: what `decamp pki init` and `decamp pki issue` do.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::error::PkiError;
use super::files::{NewFile, publish, read, read_key};
use super::identity::{IdentityFiles, certificates, not_after_unix_s};
use super::name::PeerIdentity;

/// Validity of a CA in days unless told otherwise: ten years, because replacing it means visiting every host.
pub const DAYS_OF_CA: u32 = 3653;
/// Validity of a certificate in days unless told otherwise. A certificate never outlives its CA.
pub const DAYS_OF_CERTIFICATE: u32 = 3653;
/// Longest validity that can be asked for.
const DAYS_MAX: u32 = 36_525;
const DAY: Duration = Duration::from_secs(86_400);
/// Certificates begin this much in the past, so that a host whose clock is a little behind accepts them at once.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// Where a CA lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// The CA's certificate: every host and operator needs a copy.
    pub cert: PathBuf,
    /// The CA's key: whoever has it can be any host.
    pub key: PathBuf,
}

impl CaFiles {
    /// The files of the CA below `dir`, whether they exist or not.
    #[must_use]
    pub fn below(dir: &Path) -> Self {
        Self { cert: dir.join("ca/ca.pem"), key: dir.join("ca/key.pem") }
    }
}

/// A certificate to be made.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// Directory given to [`init`].
    pub dir: PathBuf,
    /// For whom; see [`PeerIdentity::host`] and [`PeerIdentity::operator`].
    pub subject: PeerIdentity,
    /// Addresses by which a host's gRPC port will be called, besides its name.
    pub addresses: Vec<IpAddr>,
    /// Validity in days, from now; cut at the CA's own end.
    pub days: u32,
    /// Replace a certificate and key that are there.
    pub force: bool,
}

/// A certificate that was made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The directory to copy to the host or operator.
    pub dir: PathBuf,
    /// The files inside.
    pub files: IdentityFiles,
    /// Last second of validity, in seconds since 1970.
    pub not_after_unix_s: u64,
}

/// Makes a CA (ECDSA P-256) below `dir`: `dir/ca/ca.pem` and `dir/ca/key.pem`.
///
/// # Errors
/// [`PkiError::Exists`] without `force`; [`PkiError::Io`], [`PkiError::DirectoryMode`], [`PkiError::Generate`].
pub fn init(dir: &Path, days: u32, force: bool) -> Result<CaFiles, PkiError> {
    let failed = |source| PkiError::Generate { what: "the CA", source };
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let (mut params, _) = params(days, u64::MAX)?;
    // Two CAs must not carry one name: with equal names a certificate of the other CA would be reported as a forged
    // signature instead of an unknown issuer.
    let unique = uuid::Uuid::new_v4().simple().to_string();
    params.distinguished_name.push(DnType::CommonName, format!("decamp CA {}", &unique[..12]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key).map_err(failed)?;
    let files = [
        NewFile { name: "ca.pem", text: &cert.pem(), is_key: false },
        NewFile { name: "key.pem", text: &key.serialize_pem(), is_key: true },
    ];
    publish(&dir.join("ca"), &files, force)?;
    Ok(CaFiles::below(dir))
}

/// Makes a certificate and its key (ECDSA P-256): `dir/hosts/NAME/` or `dir/operators/NAME/`, with a copy of the CA's
/// certificate. A host's certificate is good for both ends of a connection, an operator's for the client's end only.
///
/// # Errors
/// [`PkiError::Io`] when there is no CA yet; [`PkiError::Exists`] without `force`; the others as they say.
pub fn issue(request: &IssueRequest) -> Result<Issued, PkiError> {
    let failed = |source| PkiError::Generate { what: "the certificate", source };
    let ca = CaFiles::below(&request.dir);
    let ca_pem = read(&ca.cert)?;
    let ca_key = KeyPair::from_pem(&read_key(&ca.key)?).map_err(failed)?;
    let ca_not_after_unix_s = not_after_unix_s(&certificates(&ca_pem, &ca.cert)?[0])?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(failed)?;

    if ca_not_after_unix_s <= unix_s(SystemTime::now()) {
        return Err(PkiError::CaExpired { path: ca.cert });
    }
    let (mut params, not_after_unix_s) = params(request.days, ca_not_after_unix_s)?;
    let dns = request.subject.dns_name();
    params.distinguished_name.push(DnType::CommonName, common_name(&dns));
    params.subject_alt_names.push(SanType::DnsName(dns.try_into().map_err(failed)?));
    params.subject_alt_names.extend(request.addresses.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    let (group, name) = match &request.subject {
        PeerIdentity::Host(name) => {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            ("hosts", name.as_str())
        }
        PeerIdentity::Operator(name) => ("operators", name.as_str()),
    };
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let cert = params.signed_by(&key, &issuer).map_err(failed)?;
    let dir = request.dir.join(group).join(name);
    let files = [
        NewFile { name: "ca.pem", text: &ca_pem, is_key: false },
        NewFile { name: "cert.pem", text: &cert.pem(), is_key: false },
        NewFile { name: "key.pem", text: &key.serialize_pem(), is_key: true },
    ];
    publish(&dir, &files, request.force)?;
    Ok(Issued { files: IdentityFiles::in_dir(&dir), dir, not_after_unix_s })
}

/// Parameters valid from now for `days`, but not beyond `latest_unix_s`; and the end in seconds since 1970.
fn params(days: u32, latest_unix_s: u64) -> Result<(CertificateParams, u64), PkiError> {
    if days == 0 || days > DAYS_MAX {
        return Err(PkiError::BadValidity { days, max: DAYS_MAX });
    }
    let now = SystemTime::now();
    let not_after_unix_s = unix_s(now + DAY * days).min(latest_unix_s);
    // rcgen counts in the `time` crate's type; adding to a date of its making spares a dependency of our own.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + Duration::from_secs(unix_s(now - CLOCK_SLACK));
    params.not_after = epoch + Duration::from_secs(not_after_unix_s);
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok((params, not_after_unix_s))
}

/// RFC 5280 allows 64 characters; the name that counts is the DNS name beside it.
fn common_name(dns: &str) -> String {
    dns.chars().take(64).collect()
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
