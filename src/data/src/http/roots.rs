//! Certificate authorities for TLS to sources and sinks.
//!
//! Those of the system where there are any (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), else the Mozilla list that is
//! compiled in: an empty image has no CA files, and reqwest's platform verifier would refuse to start there.

use std::sync::OnceLock;

use reqwest::Certificate;

/// The certificate authorities to trust.
pub fn certificates() -> &'static [Certificate] {
    static FOUND: OnceLock<Vec<Certificate>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let system = rustls_native_certs::load_native_certs().certs;
        let system: Vec<Certificate> = system.iter().filter_map(|der| Certificate::from_der(der).ok()).collect();
        if system.is_empty() {
            let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
            return bundled.iter().filter_map(|der| Certificate::from_der(der).ok()).collect();
        }
        system
    })
}
