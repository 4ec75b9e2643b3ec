//! Making and loading certificates, on real files.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustls_pki_types::UnixTime;

use super::testing::Fleet;
use super::*;

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn request(fleet: &Fleet, name: &str) -> IssueRequest {
    IssueRequest {
        dir: fleet.path().to_owned(),
        subject: PeerIdentity::host(name).unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        days: 30,
        force: false,
    }
}

#[test]
fn what_is_issued_loads_and_is_trusted() {
    let fleet = Fleet::new();
    let issued = issue(&request(&fleet, "node-a")).unwrap();
    let identity = load_identity(&issued.files).unwrap();
    assert_eq!(identity.subject(), &PeerIdentity::host("node-a").unwrap());
    assert_eq!(identity.not_after_unix_s(), issued.not_after_unix_s);
    identity.verify(UnixTime::now()).unwrap();
    let tonic = tonic::transport::ServerTlsConfig::new()
        .identity(tonic::transport::Identity::from_pem(identity.cert_pem(), identity.key_pem()))
        .client_ca_root(tonic::transport::Certificate::from_pem(identity.ca_pem()));
    tonic::transport::Server::builder().tls_config(tonic).unwrap();
    assert!(!format!("{identity:?}").contains("PRIVATE"), "a key must not be printed");
}

#[test]
fn addresses_are_in_the_certificate() {
    let fleet = Fleet::new();
    let identity = load_identity(&issue(&request(&fleet, "node-a")).unwrap().files).unwrap();
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
    issue(&request(&fleet, "node-a")).unwrap();
    for key in ["ca/key.pem", "hosts/node-a/key.pem"] {
        assert_eq!(mode(&fleet.path().join(key)), 0o600, "{key}");
    }
    for dir in ["ca", "hosts", "hosts/node-a"] {
        assert_eq!(mode(&fleet.path().join(dir)), 0o700, "{dir}");
    }
}

#[test]
fn nothing_is_overwritten_without_force() {
    let fleet = Fleet::new();
    let issued = issue(&request(&fleet, "node-a")).unwrap();
    let before = std::fs::read(&issued.files.key).unwrap();
    assert!(matches!(issue(&request(&fleet, "node-a")), Err(PkiError::Exists { .. })));
    assert!(matches!(init(fleet.path(), 1, false), Err(PkiError::Exists { .. })));
    assert_eq!(std::fs::read(&issued.files.key).unwrap(), before);
    issue(&IssueRequest { force: true, ..request(&fleet, "node-a") }).unwrap();
    assert_ne!(std::fs::read(&issued.files.key).unwrap(), before);
    let left: Vec<_> = std::fs::read_dir(fleet.path().join("hosts")).unwrap().collect();
    assert_eq!(left.len(), 1, "no half-made or old directory stays behind: {left:?}");
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_helps() {
    let fleet = Fleet::new();
    let files = issue(&request(&fleet, "node-a")).unwrap().files;
    for mode in [0o640, 0o604, 0o660, 0o666] {
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        let text = load_identity(&files).unwrap_err().to_string();
        assert!(text.contains(&format!("{mode:04o}")) && text.contains("chmod 600"), "{text}");
    }
    for mode in [0o600, 0o400] {
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        load_identity(&files).unwrap();
    }
}

#[test]
fn a_key_of_somebody_else_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: giving a file away needs root");
        return;
    }
    let fleet = Fleet::new();
    let files = issue(&request(&fleet, "node-a")).unwrap().files;
    std::os::unix::fs::chown(&files.key, Some(12_345), None).unwrap();
    let error = load_identity(&files).unwrap_err();
    assert!(matches!(error, PkiError::KeyOwner { owner: 12_345, .. }), "{error}");
}

#[test]
fn a_ca_key_that_others_can_read_issues_nothing() {
    let fleet = Fleet::new();
    let key = CaFiles::below(fleet.path()).key;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(issue(&request(&fleet, "node-a")), Err(PkiError::KeyMode { mode: 0o644, .. })));
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let fleet = Fleet::new();
    std::fs::set_permissions(fleet.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(init(fleet.path(), 30, true), Err(PkiError::DirectoryMode { .. })));
}

#[test]
fn another_hosts_key_does_not_fit() {
    let fleet = Fleet::new();
    let mut files = fleet.host("node-a").files().clone();
    fleet.host("node-b");
    files.key = fleet.key_of("node-b");
    assert!(matches!(load_identity(&files), Err(PkiError::KeyMismatch { .. })));
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
    init(fleet.path(), 10, true).unwrap();
    let issued = issue(&request(&fleet, "node-a")).unwrap();
    let ten_days = UnixTime::now().as_secs() + 10 * 86_400;
    assert!(issued.not_after_unix_s <= ten_days, "{}", issued.not_after_unix_s);
    for days in [0, 1_000_000] {
        let wrong = IssueRequest { days, force: true, ..request(&fleet, "node-a") };
        assert!(matches!(issue(&wrong), Err(PkiError::BadValidity { .. })), "{days}");
    }
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
        IdentityFiles { ca: junk.clone(), ..good.clone() },
        IdentityFiles { cert: junk.clone(), ..good.clone() },
        IdentityFiles { key: junk.clone(), ..good.clone() },
        IdentityFiles { key: good.cert.clone(), ..good.clone() },
    ];
    std::fs::set_permissions(&good.cert, std::fs::Permissions::from_mode(0o600)).unwrap();
    for files in cases {
        let error = load_identity(&files).unwrap_err();
        assert!(matches!(error, PkiError::NothingInside { .. }), "{error}");
    }
    let missing = IdentityFiles { ca: fleet.path().join("nowhere.pem"), ..good };
    assert!(load_identity(&missing).unwrap_err().to_string().contains("nowhere.pem"));
}
