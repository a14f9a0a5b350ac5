//! Runs a property on every file of a fuzz target's corpus: fuzzing found each of them worth keeping.

use std::path::Path;

/// Runs `property` on the corpus of `target`.
///
/// # Panics
/// Where the property does not hold, after naming the file; or where there is no corpus.
pub(crate) fn replay(target: &str, property: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&corpus).expect("a corpus is a folder");
    let mut paths: Vec<_> = files.map(|file| file.expect("a folder can be read").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "the corpus of `{target}` is empty");
    for path in paths {
        // Shown where the test fails.
        eprintln!("{target}: {}", path.display());
        property(&std::fs::read(path).expect("a corpus file can be read"));
    }
}
