//! What the pod's environment says.

use std::{env, path::PathBuf, time::Duration};

use collect_api::protocol::{ASSIGNMENT_ENV, Assignment, POD_UID_ENV, TERMINATION_LOG, TERMINATION_LOG_ENV};
use collect_data::Settings;

/// Overrides the folder of the secrets; for runs outside a pod.
pub const SECRETS_DIR_ENV: &str = "COLLECT_SECRETS_DIR";
/// Overrides the folder of the volume; for runs outside a pod.
pub const VOLUME_DIR_ENV: &str = "COLLECT_VOLUME_DIR";
/// Overrides the text bytes after which a part is closed.
pub const PART_BYTES_ENV: &str = "COLLECT_PART_BYTES";
/// Overrides the time after which a part is closed, in milliseconds.
pub const PART_MS_ENV: &str = "COLLECT_PART_MS";

/// Reads the assignment.
///
/// # Errors
/// What is wrong with it.
pub fn read() -> Result<Assignment, String> {
    let text = env::var(ASSIGNMENT_ENV).map_err(|error| format!("{ASSIGNMENT_ENV}: {error}"))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("{ASSIGNMENT_ENV}: {error}; operator and worker are of different versions?"))
}

/// Where the worker finds its files, and its bounds.
pub fn settings() -> Settings {
    let default = Settings::default();
    let dir = |name, default| env::var_os(name).map_or(default, PathBuf::from);
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    Settings {
        secrets_dir: dir(SECRETS_DIR_ENV, default.secrets_dir.clone()),
        volume_dir: dir(VOLUME_DIR_ENV, default.volume_dir.clone()),
        pod_uid: env::var(POD_UID_ENV).unwrap_or_default(),
        part_bytes: number(PART_BYTES_ENV).unwrap_or(default.part_bytes),
        part_age: number(PART_MS_ENV).map_or(default.part_age, Duration::from_millis),
        ..default
    }
}

/// Where the termination message goes.
pub fn termination_log() -> PathBuf {
    env::var_os(TERMINATION_LOG_ENV).map_or_else(|| TERMINATION_LOG.into(), PathBuf::from)
}
