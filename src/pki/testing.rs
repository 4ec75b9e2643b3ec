//! A throw-away fleet for tests: a CA and identities in a temporary directory, good and bad ones.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};

use super::{
    CaFiles, DAYS_OF_CA, DAYS_OF_CERTIFICATE, Identity, IdentityFiles, IssueRequest, PeerIdentity, init,
    issue, load_identity,
};

/// A CA that vanishes with this value.
#[derive(Debug)]
pub(crate) struct Fleet {
    dir: tempfile::TempDir,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), DAYS_OF_CA, false).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn host(&self, name: &str) -> Identity {
        self.identity(PeerIdentity::host(name).unwrap())
    }

    pub(crate) fn operator(&self, name: &str) -> Identity {
        self.identity(PeerIdentity::operator(name).unwrap())
    }

    fn identity(&self, subject: PeerIdentity) -> Identity {
        let dir = self.path().to_owned();
        let request =
            IssueRequest { dir, subject, addresses: Vec::new(), days: DAYS_OF_CERTIFICATE, force: true };
        load_identity(&issue(&request).unwrap().files).unwrap()
    }

    /// A host of `other`, which trusts this CA all the same: it accepts the others and is not accepted by them.
    pub(crate) fn host_of_another_ca(&self, other: &Fleet, name: &str) -> Identity {
        let files = other.host(name).files().clone();
        load_identity(&IdentityFiles { ca: CaFiles::below(self.path()).cert, ..files }).unwrap()
    }

    /// A host with a certificate of this CA that [`issue`] would not make.
    pub(crate) fn odd_host(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        load_identity(&self.odd_files(name, change)).unwrap()
    }

    /// The files of [`Fleet::odd_host`].
    pub(crate) fn odd_files(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> IdentityFiles {
        let ca = CaFiles::below(self.path());
        let ca_key = KeyPair::from_pem(&std::fs::read_to_string(&ca.key).unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(&ca.cert).unwrap(), ca_key).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let files = self.host(name).files().clone();
        let key = KeyPair::from_pem(&std::fs::read_to_string(&files.key).unwrap()).unwrap();
        std::fs::write(&files.cert, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        files
    }

    /// A host whose certificate ended in 2001.
    pub(crate) fn expired_host(&self, name: &str) -> Identity {
        self.odd_host(name, |params| {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        })
    }

    pub(crate) fn key_of(&self, name: &str) -> PathBuf {
        self.path().join("hosts").join(name).join("key.pem")
    }
}
