//! Making and loading certificates, on real files.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use rustls_pki_types::UnixTime;

use super::testing::Fleet;
use super::*;

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

const MONTH: Validity = Validity(Duration::from_secs(30 * 86_400));

fn issue(fleet: &Fleet, name: &str, validity: Validity, force: bool) -> Result<Issued, PkiError> {
    let addresses = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    issue_host(fleet.path(), &name.try_into().unwrap(), &addresses, validity, force)
}

fn issued(fleet: &Fleet) -> TlsFiles {
    fleet.files(issue(fleet, "node-a", MONTH, false).unwrap())
}

#[test]
fn what_is_issued_loads_and_is_trusted() {
    let fleet = Fleet::new();
    let identity = Identity::load(&issued(&fleet)).unwrap();
    assert_eq!(identity.name().unwrap(), PeerIdentity::host("node-a").unwrap());
    let month = UnixTime::now().as_secs() + 30 * 86_400;
    assert!(identity.not_after_unix_s().unwrap().abs_diff(month) < 60);
    identity.verify(UnixTime::now()).unwrap();
    let tonic = tonic::transport::ServerTlsConfig::new()
        .identity(tonic::transport::Identity::from_pem(&identity.pem.cert, &identity.pem.key))
        .client_ca_root(tonic::transport::Certificate::from_pem(&identity.pem.ca));
    tonic::transport::Server::builder().tls_config(tonic).unwrap();
    assert!(!format!("{identity:?}{:?}", identity.pem).contains("PRIVATE"), "a key must not be printed");
}

#[test]
fn addresses_are_in_the_certificate() {
    let fleet = Fleet::new();
    let identity = Identity::load(&issued(&fleet)).unwrap();
    let verifier = server_verifier(&identity).unwrap();
    for name in ["node-a", "10.0.0.1", "fd00::1"] {
        let checked = rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &identity.certified.cert[0],
            &[],
            &name.try_into().unwrap(),
            &[],
            UnixTime::now(),
        );
        checked.unwrap();
    }
}

#[test]
fn keys_and_directories_are_private() {
    let fleet = Fleet::new();
    issued(&fleet);
    for key in ["ca.key", "node-a.key"] {
        assert_eq!(mode(&fleet.path().join(key)), 0o600, "{key}");
    }
    let fresh = fleet.path().join("a/b");
    init(&fresh, MONTH, false).unwrap();
    assert_eq!(mode(&fresh), 0o700);
}

#[test]
fn nothing_is_overwritten_without_force() {
    let fleet = Fleet::new();
    let files = issued(&fleet);
    let before = std::fs::read(&files.key).unwrap();
    assert!(matches!(issue(&fleet, "node-a", MONTH, false), Err(PkiError::Exists { .. })));
    assert!(matches!(init(fleet.path(), MONTH, false), Err(PkiError::Exists { .. })));
    // Half of a pair is not overwritten either: the key may be all that is left of it.
    std::fs::remove_file(&files.cert).unwrap();
    assert!(matches!(issue(&fleet, "node-a", MONTH, false), Err(PkiError::Exists { .. })));
    assert_eq!(std::fs::read(&files.key).unwrap(), before);
    issue(&fleet, "node-a", MONTH, true).unwrap();
    assert_ne!(std::fs::read(&files.key).unwrap(), before);
    assert_eq!(mode(&files.key), 0o600);
    let mut left: Vec<_> = std::fs::read_dir(fleet.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["ca.crt", "ca.key", "node-a.crt", "node-a.key"], "nothing half-made stays behind");
}

#[test]
fn a_name_cannot_take_the_cas_place() {
    let fleet = Fleet::new();
    let before = std::fs::read(&fleet.ca().key).unwrap();
    for name in ["ca", "x.operator.decamp", "Node-A", "node..a"] {
        let error = issue(&fleet, name, MONTH, true).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{name}: {error}");
    }
    for name in ["ca.x", "../x", "", "Ann"] {
        let error = issue_operator(fleet.path(), name, MONTH, true).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{name}: {error}");
    }
    assert_eq!(std::fs::read(&fleet.ca().key).unwrap(), before);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_helps() {
    let fleet = Fleet::new();
    let files = issued(&fleet);
    for mode in [0o640, 0o604, 0o660, 0o666] {
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        let text = Identity::load(&files).unwrap_err().to_string();
        assert!(text.contains(&format!("{mode:04o}")) && text.contains("chmod 600"), "{text}");
    }
    for mode in [0o600, 0o400] {
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        Identity::load(&files).unwrap();
    }
}

#[test]
fn a_key_of_somebody_else_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: giving a file away needs root");
        return;
    }
    let fleet = Fleet::new();
    let files = issued(&fleet);
    std::os::unix::fs::chown(&files.key, Some(12_345), None).unwrap();
    let error = Identity::load(&files).unwrap_err();
    assert!(matches!(error, PkiError::KeyOwner { owner: 12_345, .. }), "{error}");
}

#[test]
fn a_ca_key_that_others_can_read_issues_nothing() {
    let fleet = Fleet::new();
    let key = &fleet.ca().key;
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(issue(&fleet, "node-a", MONTH, false), Err(PkiError::KeyMode { mode: 0o644, .. })));
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let fleet = Fleet::new();
    std::fs::set_permissions(fleet.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(init(fleet.path(), MONTH, true), Err(PkiError::DirectoryMode { .. })));
}

#[test]
fn another_hosts_key_does_not_fit() {
    let fleet = Fleet::new();
    let mut files = fleet.host("node-a").files().clone();
    files.key = fleet.host("node-b").files().key.clone();
    assert!(matches!(Identity::load(&files), Err(PkiError::KeyMismatch { .. })));
}

#[test]
fn what_peers_would_refuse_is_found_at_home() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    for identity in [
        fleet.expired_host("node-a"),
        fleet.host_of_another_ca(&other, "node-a"),
        fleet.odd_host("node-a", |params| params.not_before = rcgen::date_time_ymd(3000, 1, 1)),
        fleet.odd_host("node-a", |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        }),
    ] {
        let error = identity.verify(UnixTime::now()).unwrap_err();
        assert!(matches!(error, PkiError::NotTrusted { .. }), "{error}");
    }
}

#[test]
fn a_certificate_does_not_outlive_its_ca() {
    let fleet = Fleet::new();
    init(fleet.path(), Validity(Duration::from_secs(10 * 86_400)), true).unwrap();
    let end = Identity::load(&issued(&fleet)).unwrap().not_after_unix_s().unwrap();
    assert!(end <= UnixTime::now().as_secs() + 10 * 86_400, "{end}");
    for days in [0, 1_000_000] {
        let wrong = issue(&fleet, "node-a", Validity(Duration::from_secs(days * 86_400)), true);
        assert!(matches!(wrong, Err(PkiError::BadValidity { .. })), "{days}");
    }
}

#[test]
fn without_a_ca_the_first_step_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = issue_operator(dir.path(), "ann", MONTH, false).unwrap_err().to_string();
    assert!(error.contains("decamp pki init"), "{error}");
}

#[test]
fn an_operator_is_no_server() {
    let fleet = Fleet::new();
    let operator = fleet.operator("alice");
    operator.verify(UnixTime::now()).unwrap();
    let verifier = server_verifier(&operator).unwrap();
    let error = rustls::client::danger::ServerCertVerifier::verify_server_cert(
        &*verifier,
        &operator.certified.cert[0],
        &[],
        &"alice.operator.decamp".try_into().unwrap(),
        &[],
        UnixTime::now(),
    );
    assert!(error.is_err(), "an operator's certificate must not pass for a server's");
}

#[test]
fn files_with_the_wrong_content_are_named() {
    let fleet = Fleet::new();
    let good = fleet.host("node-a").files().clone();
    let junk = fleet.path().join("junk.pem");
    std::fs::write(&junk, "no certificate at all\n").unwrap();
    std::fs::set_permissions(&junk, std::fs::Permissions::from_mode(0o600)).unwrap();
    let cases = [
        TlsFiles { ca: junk.clone(), ..good.clone() },
        TlsFiles { cert: junk.clone(), ..good.clone() },
        TlsFiles { key: junk.clone(), ..good.clone() },
        TlsFiles { key: good.cert.clone(), ..good.clone() },
    ];
    std::fs::set_permissions(&good.cert, std::fs::Permissions::from_mode(0o600)).unwrap();
    for files in cases {
        let error = Identity::load(&files).unwrap_err();
        assert!(matches!(error, PkiError::NothingInside { .. }), "{error}");
    }
    let missing = TlsFiles { ca: fleet.path().join("nowhere.pem"), ..good };
    assert!(Identity::load(&missing).unwrap_err().to_string().contains("nowhere.pem"));
}
