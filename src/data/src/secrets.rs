//! Secrets as files: one folder for each secret, one file for each key, mounted in the worker only (I20).

use std::{fmt, fs, io, path::PathBuf};

/// A secret's value. It never shows in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value, for the request that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a secret can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key is not there.
    #[error("secret `{name}` has no key `{key}`; add it or change {field}")]
    Missing {
        /// Name of the secret.
        name: String,
        /// Key within it.
        key: String,
        /// Field that asks for it.
        field: String,
    },
    /// The key is there and holds nothing.
    #[error("key `{key}` of secret `{name}` is empty; fill it or change {field}")]
    Empty {
        /// Name of the secret.
        name: String,
        /// Key within it.
        key: String,
        /// Field that asks for it.
        field: String,
    },
    /// The key is there and can't be read.
    #[error("key `{key}` of secret `{name}` can't be read: {cause}; it must be UTF-8 text")]
    Unreadable {
        /// Name of the secret.
        name: String,
        /// Key within it.
        key: String,
        /// What the file system says.
        cause: String,
    },
}

impl SecretError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "SecretMissing",
            Self::Empty { .. } | Self::Unreadable { .. } => "SecretInvalid",
        }
    }
}

/// The folder in which secrets are mounted.
#[derive(Clone, Debug)]
pub struct Secrets {
    dir: PathBuf,
}

impl Secrets {
    /// Secrets below `dir`.
    pub fn below(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The value of a key, without white space at its ends. `field` is the field of the task that asks for it.
    ///
    /// # Errors
    /// When the key is missing, empty or no text.
    pub fn read(&self, name: &str, key: &str, field: &str) -> Result<Secret, SecretError> {
        self.read_optional(name, key, field)?.ok_or_else(|| SecretError::Missing {
            name: name.to_owned(),
            key: key.to_owned(),
            field: field.to_owned(),
        })
    }

    /// The same for a key that need not be there.
    ///
    /// # Errors
    /// When the key is empty or no text.
    pub fn read_optional(&self, name: &str, key: &str, field: &str) -> Result<Option<Secret>, SecretError> {
        let text = match fs::read_to_string(self.dir.join(name).join(key)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let cause = error.to_string();
                return Err(SecretError::Unreadable { name: name.to_owned(), key: key.to_owned(), cause });
            }
        };
        match text.trim() {
            "" => Err(SecretError::Empty { name: name.to_owned(), key: key.to_owned(), field: field.to_owned() }),
            value => Ok(Some(Secret(value.to_owned()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Secrets::below(dir.path()).read("registry", "token", "spec.source.http.auth.bearer.secretRef.key");
        assert_eq!(
            error.unwrap_err().to_string(),
            "secret `registry` has no key `token`; add it or change spec.source.http.auth.bearer.secretRef.key"
        );
    }

    #[test]
    fn a_value_is_trimmed_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lake")).unwrap();
        fs::write(dir.path().join("lake/key"), "s3cret\n").unwrap();
        fs::write(dir.path().join("lake/blank"), "\n").unwrap();
        let secrets = Secrets::below(dir.path());
        let secret = secrets.read("lake", "key", "f").unwrap();
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("s3cret", "***"));
        assert!(matches!(secrets.read("lake", "blank", "f"), Err(SecretError::Empty { .. })));
        assert_eq!(secrets.read_optional("lake", "other", "f").unwrap(), None);
    }
}
