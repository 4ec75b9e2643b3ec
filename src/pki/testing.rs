//! A throw-away fleet for tests: a CA and identities in a temporary directory, good and bad ones.

use std::path::Path;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};

use super::{Identity, Issued, TlsFiles, Validity, init, issue_host, issue_operator};

/// A CA that vanishes with this value.
#[derive(Debug)]
pub(crate) struct Fleet {
    dir: tempfile::TempDir,
    ca: Issued,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = init(dir.path(), Validity::default(), false).unwrap();
        Self { dir, ca }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn ca(&self) -> &Issued {
        &self.ca
    }

    /// An issued certificate together with this CA's.
    pub(crate) fn files(&self, issued: Issued) -> TlsFiles {
        TlsFiles { ca: self.ca.cert.clone(), cert: issued.cert, key: issued.key }
    }

    pub(crate) fn host(&self, name: &str) -> Identity {
        let issued =
            issue_host(self.path(), &name.try_into().unwrap(), &[], Validity::default(), true).unwrap();
        Identity::load(&self.files(issued)).unwrap()
    }

    pub(crate) fn operator(&self, name: &str) -> Identity {
        let issued = issue_operator(self.path(), name, Validity::default(), true).unwrap();
        Identity::load(&self.files(issued)).unwrap()
    }

    /// A host of `other`, which trusts this CA all the same: it accepts the others and is not accepted by them.
    pub(crate) fn host_of_another_ca(&self, other: &Fleet, name: &str) -> Identity {
        let files = other.host(name).files().clone();
        Identity::load(&TlsFiles { ca: self.ca.cert.clone(), ..files }).unwrap()
    }

    /// A host with a certificate of this CA that [`issue_host`] would not make.
    pub(crate) fn odd_host(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let ca_key = KeyPair::from_pem(&std::fs::read_to_string(&self.ca.key).unwrap()).unwrap();
        let ca_pem = std::fs::read_to_string(&self.ca.cert).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let files = self.host(name).files().clone();
        let key = KeyPair::from_pem(&std::fs::read_to_string(&files.key).unwrap()).unwrap();
        std::fs::write(&files.cert, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        Identity::load(&files).unwrap()
    }

    /// A host whose certificate ended in 2001.
    pub(crate) fn expired_host(&self, name: &str) -> Identity {
        self.odd_host(name, |params| {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        })
    }
}
