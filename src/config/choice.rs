//! Settings that are one of a few words.

/// Declares an enum with the words that spell it; the first one is the default.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $type:ident {
            $(#[doc = $first_help:literal])+
            $first:ident = $first_name:literal,
            $($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $type {
            $(#[doc = $first_help])+
            #[default]
            $first,
            $($(#[doc = $help])+ $variant,)+
        }

        impl $type {
            /// Every name that is read.
            pub const NAMES: &[&str] = &[$first_name, $($name),+];

            /// The name shown to operators and clients.
            pub fn name(self) -> &'static str {
                match self {
                    Self::$first => $first_name,
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $first_name => Ok(Self::$first),
                    $($name => Ok(Self::$variant),)+
                    _ => Err(format!("has to be one of {}", super::value::listed(Self::NAMES))),
                }
            }
        }

        impl super::value::Value for $type {
            type Bound = ();

            const KIND: super::setting::Kind = super::setting::Kind::Choice(Self::NAMES);

            fn parse(text: &str) -> Result<Self, String> {
                text.trim().parse()
            }

            fn show(&self) -> Option<String> {
                Some(self.name().to_owned())
            }
        }
    };
}

choice! {
    /// Arithmetic of the model's matrix products.
    Precision {
        /// As the reference computes.
        Fp32 = "fp32",
        /// Weights in eight bits: faster, and very nearly the same scores.
        Int8 = "int8",
        /// Sixteen bits, on a GPU.
        Fp16 = "fp16",
        /// Eight bits where they are faster and what they do to the scores is known.
        Auto = "auto",
    }
}

choice! {
    /// How a log line is written.
    LogFormat {
        /// For people on a terminal, JSON otherwise.
        Auto = "auto",
        /// Text for people.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// How a document is repeated.
    DocumentForm {
        /// `{"text": "…"}`.
        Object = "object",
        /// `"…"`.
        String = "string",
        /// Not at all.
        Omit = "omit",
    }
}

choice! {
    /// Which text gives way when a pair is too long.
    Strategy {
        /// The longer one first, as sentence-transformers does.
        LongestFirst = "longest_first",
        /// The document alone; a query that leaves it no room is refused.
        DocumentOnly = "document_only",
    }
}
