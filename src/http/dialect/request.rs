//! Requests as lists of fields.

/// Declares a request: its fields, each with the reader of its value, the type of that value, and
/// the type that the API's description shows for it. Every field starts absent.
macro_rules! request {
    (
        $(#[$meta:meta])*
        pub struct $name:ident as $schema_name:ident {
            $(
                $(#[$doc:meta])*
                $field:ident: $reader:path => $value:ty as $schema:ty $({ $($extra:tt)* })?
            ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default, utoipa::ToSchema)]
        #[schema(as = $schema_name)]
        pub struct $name {
            $(
                $(#[$doc])*
                #[schema(value_type = $schema $(, $($extra)*)?)]
                $field: Option<$value>,
            )*
        }

        impl $crate::http::dialect::field::Fields for $name {
            fn read<'de, M: serde::de::MapAccess<'de>>(
                &mut self,
                field: &str,
                map: &mut M,
            ) -> Result<(), M::Error> {
                match field {
                    $(stringify!($field) => {
                        self.$field = map.next_value_seed($reader(&field))?.into();
                    })*
                    _ => $crate::http::dialect::field::skip(map)?,
                }
                Ok(())
            }
        }
    };
}

pub(super) use request;
