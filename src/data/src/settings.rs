//! Where a worker finds its files, and the bounds that it keeps.

use std::{path::PathBuf, time::Duration};

use collect_api::protocol::{SECRETS_DIR, VOLUME_DIR};

use crate::http::Retry;

/// Where a worker finds its files, and the bounds that it keeps. The default is that of a worker pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of the secrets.
    pub secrets_dir: PathBuf,
    /// Folder that `file:///` stands for.
    pub volume_dir: PathBuf,
    /// Uid of the pod; its first 8 characters keep the folders of two pods apart.
    pub pod_uid: String,
    /// Text bytes after which a part is closed at the next page boundary.
    pub part_bytes: u64,
    /// Time after which a part is closed at the next page boundary.
    pub part_age: Duration,
    /// Largest answer of the source, uncompressed, in bytes.
    pub page_bytes: usize,
    /// Most keys of a slice that are kept to count duplicates.
    pub max_keys: usize,
    /// How the request of a hook is repeated.
    pub hook_retry: Retry,
    /// Time that one request of a hook may take.
    pub hook_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            secrets_dir: SECRETS_DIR.into(),
            volume_dir: VOLUME_DIR.into(),
            pod_uid: String::new(),
            part_bytes: 64 << 20,
            part_age: Duration::from_secs(60),
            page_bytes: 64 << 20,
            max_keys: 1_000_000,
            hook_retry: Retry::of(None),
            hook_timeout: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// Folder of an attempt below its slice's: `<attempt>-<first 8 of the pod's uid>`.
    pub fn attempt_folder(&self, attempt: i32) -> String {
        let pod: String = self.pod_uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        format!("{attempt}-{}", if pod.is_empty() { "local" } else { &pod })
    }
}
