//! Writes the CustomResourceDefinitions into a folder, or checks with `--check` that the folder holds them already.

use std::{error::Error, fs, path::PathBuf};

use collect_api::{GROUP, crd};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let check = args.iter().any(|arg| arg == "--check");
    let folder = args.iter().find(|arg| !arg.starts_with("--")).ok_or("usage: crds FOLDER [--check]")?;
    let mut stale = Vec::new();
    for (plural, definition) in crd::all()? {
        let path = PathBuf::from(folder).join(format!("{GROUP}_{plural}.yaml"));
        let text = serde_yaml::to_string(&definition)?;
        if check {
            if fs::read_to_string(&path).unwrap_or_default() != text {
                stale.push(path.display().to_string());
            }
        } else {
            fs::create_dir_all(folder)?;
            fs::write(&path, text)?;
        }
    }
    if stale.is_empty() { Ok(()) } else { Err(format!("not current: {}; run `make crds`", stale.join(", ")).into()) }
}
