//! `decamp pki`: a working CA and certificates in one command each.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::{OPERATOR_SUFFIX, PkiError};
use crate::model::HostId;

/// How long certificates are good for.
#[derive(Debug, Clone, Copy)]
pub struct Validity(pub Duration);

impl Default for Validity {
    /// Ten years: the operator's own CA, whose certificates are replaced by issuing again.
    fn default() -> Self {
        Self(Duration::from_secs(3650 * 24 * 3600))
    }
}

/// Files that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Certificate, PEM.
    pub cert: PathBuf,
    /// Private key, PEM, mode 0600.
    pub key: PathBuf,
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { doing, path, source }
}

fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), PkiError> {
    if path.exists() && !force {
        return Err(PkiError::Exists { path: path.to_owned() });
    }
    let next = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(mode).open(&next).map_err(io("write", &next))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(io("set the mode of", &next))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io("write", &next))?;
    std::fs::rename(&next, path).map_err(io("put in place", path))
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    // A clock that is a little behind must not refuse a fresh certificate.
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + validity.0).into();
    Ok(params)
}

/// Makes a CA in a folder: `ca.crt` and `ca.key`.
///
/// # Errors
/// One exists already and `force` is not given; the file system's.
pub fn init(dir: &Path, validity: Validity, force: bool) -> Result<Issued, PkiError> {
    std::fs::create_dir_all(dir).map_err(io("create", dir))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .map_err(io("set the mode of", dir))?;
    let issued = Issued { cert: dir.join("ca.crt"), key: dir.join("ca.key") };
    let mut params = params("decamp CA", validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    write(&issued.key, &key.serialize_pem(), 0o600, force)?;
    write(&issued.cert, &cert.pem(), 0o644, force)?;
    Ok(issued)
}

fn issue(
    dir: &Path,
    file_name: &str,
    sans: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    validity: Validity,
    force: bool,
) -> Result<Issued, PkiError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(io("read (run `decamp pki init` first)", &path))
    };
    let ca_key = KeyPair::from_pem(&read("ca.key")?)?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, ca_key)?;
    let issued =
        Issued { cert: dir.join(format!("{file_name}.crt")), key: dir.join(format!("{file_name}.key")) };
    let mut params = params(file_name, validity)?;
    params.subject_alt_names = sans;
    params.extended_key_usages = usages;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    write(&issued.key, &key.serialize_pem(), 0o600, force)?;
    write(&issued.cert, &cert.pem(), 0o644, force)?;
    Ok(issued)
}

fn dns(name: &str) -> Result<SanType, PkiError> {
    let bad = |why: String| PkiError::Name { name: name.to_owned(), why };
    rustls_pki_types::DnsName::try_from(name).map_err(|error| bad(error.to_string()))?;
    Ok(SanType::DnsName(name.to_owned().try_into().map_err(|error: rcgen::Error| bad(error.to_string()))?))
}

/// A certificate for a host: `HOST.crt` and `HOST.key`.
///
/// # Errors
/// No CA in the folder, a name that cannot be a DNS name, existing files without `force`.
pub fn issue_host(
    dir: &Path,
    host: &HostId,
    addresses: &[IpAddr],
    validity: Validity,
    force: bool,
) -> Result<Issued, PkiError> {
    if host.as_str().ends_with(OPERATOR_SUFFIX) || host.as_str() == "ca" {
        let why = "it is reserved".to_owned();
        return Err(PkiError::Name { name: host.to_string(), why });
    }
    let mut sans = vec![dns(host.as_str())?];
    sans.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    issue(dir, host.as_str(), sans, usages, validity, force)
}

/// A certificate for an operator: `NAME.operator.crt` and `NAME.operator.key`.
///
/// # Errors
/// As [`issue_host`].
pub fn issue_operator(dir: &Path, name: &str, validity: Validity, force: bool) -> Result<Issued, PkiError> {
    if name.contains('.') {
        return Err(PkiError::Name {
            name: name.to_owned(),
            why: "an operator's name has no dots".to_owned(),
        });
    }
    let sans = vec![dns(&format!("{name}{OPERATOR_SUFFIX}"))?];
    issue(dir, &format!("{name}.operator"), sans, vec![ExtendedKeyUsagePurpose::ClientAuth], validity, force)
}
