//! Messages of every gRPC method, as requests read them.
//!
//! An input is the number of a method, then a body: frames of messages. It is read as a command or refused,
//! and never with the server's own failure.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use rerankd_core::{ErrorCode, Limits, RerankError};
use rerankd_grpc::frame::Messages;
use rerankd_grpc::{About, Call, METHODS, health, inference};
use rerankd_wire::{Served, ServedModel};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&number, body)) = data.split_first() else {
        return Corpus::Reject;
    };
    let Some(method) = METHODS.get(usize::from(number)) else {
        return Corpus::Reject;
    };
    let models = [ServedModel {
        name: "model".to_owned(),
        aliases: vec![],
        labels: vec!["score".to_owned()],
    }];
    let served = Served {
        models: &models,
        failed: &[],
        chosen: 0,
        strict_model_name: true,
        return_documents: false,
        limits: Limits::default(),
    };
    match method.call {
        Call::Scores(read) | Call::Tokenizes(read) => {
            let message = Messages::of(body).only();
            check(message.and_then(|message| read(message, &served)).map(drop));
        }
        Call::ScoresAll(read) => check(read(Messages::of(body), &served).map(drop)),
        Call::ScoresEach(read) | Call::TokenizesEach(read) => {
            for message in Messages::of(body) {
                match message {
                    Ok((_, message)) => check(read(message, &served).map(drop)),
                    Err(error) => check(Err(error)),
                }
            }
        }
        Call::About(About::ModelReady | About::Model) => {
            check(inference::model_name(Messages::of(body)).map(drop))
        }
        Call::About(About::Check) | Call::Watch => {
            check(health::service(Messages::of(body)).map(drop))
        }
        Call::About(About::Info | About::Live | About::Ready | About::Server)
        | Call::Reflection(_) => return Corpus::Reject,
    }
    Corpus::Keep
});

fn check(read: Result<(), RerankError>) {
    if let Err(error) = read {
        assert_ne!(error.code(), ErrorCode::Internal);
    }
}
