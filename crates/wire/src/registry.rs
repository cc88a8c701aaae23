//! The list of dialects.

use crate::dialect::{Dialect, Endpoint, Path};

/// The dialects of each file. On a path that several share, the first one that a body matches reads
/// it. What a dialect needs besides its file is its line here.
macro_rules! dialects {
    ($use:ident) => {
        $use! {
            native: NATIVE;
            tei: TEI;
            mixedbread: MIXEDBREAD;
            weaviate: WEAVIATE;
            voyage: VOYAGE;
            xinference: XINFERENCE;
            vllm: VLLM;
            infinity: INFINITY;
            cohere: V1, V2;
            llamacpp: LLAMA_CPP;
            nvidia: NVIDIA;
            open_inference: OPEN_INFERENCE;
            pinecone: PINECONE;
            dashscope: DASHSCOPE;
            sglang: SGLANG;
            zeroentropy: ZEROENTROPY;
            deepinfra: DEEPINFRA;
            ollama: OLLAMA;
        }
    };
}

/// Makes a module of each file.
macro_rules! modules {
    ($($file:ident: $($name:ident),+;)*) => {
        $(pub mod $file;)*
    };
}

/// Makes a list of all dialects.
macro_rules! list {
    ($($file:ident: $($name:ident),+;)*) => {
        &[$($(&crate::$file::$name),+),*]
    };
}

/// Every dialect.
pub static ALL: &[&Dialect] = dialects!(list);

/// Every operation of every dialect, in the order in which bodies are matched.
pub fn endpoints() -> impl Iterator<Item = Endpoint> {
    ALL.iter().flat_map(|dialect| {
        let operations = dialect.operations.iter();
        operations.map(move |operation| Endpoint { dialect, operation })
    })
}

/// The operations that are asked for at a path of `own`, that one first.
pub fn sharing(own: Endpoint, path: &Path) -> Vec<Endpoint> {
    let is_other = |other: &Endpoint| !std::ptr::eq(other.operation, own.operation);
    let shared = endpoints().filter(|other| path.shared_with.contains(&other.operation.kind));
    let told = shared.filter(|other| other.operation.signature.tells());
    std::iter::once(own).chain(told.filter(is_other)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_operations_claim_a_path_and_no_two_dialects_a_name() {
        let (mut paths, mut names) = (BTreeSet::new(), BTreeSet::new());
        for Endpoint { operation, .. } in endpoints() {
            assert!(names.insert(operation.name), "{}", operation.name);
            for path in operation.paths {
                assert!(paths.insert(path.path), "{}", path.path);
            }
        }
        let dialects: BTreeSet<&str> = ALL.iter().map(|dialect| dialect.name).collect();
        assert_eq!(dialects.len(), ALL.len());
    }
}
