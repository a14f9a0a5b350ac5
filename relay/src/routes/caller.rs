//! Who makes a call: its token, where its page is from, and the fields of its query string.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::{IntoResponse, Response};
use protocol::{Channel, ErrorCode};

use super::refuse::Refused;
use super::{AppState, Peer};
use crate::auth::{self, Principal, Unauthorized};
use crate::origins::{check_origin, is_loopback};

/// Who makes a call, and the fields of its query string.
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
    pub(crate) query: Query,
    pub(crate) peer: Peer,
    /// What its body is said to be.
    pub(super) media_type: Option<String>,
    path: String,
}

/// Why a caller is not let in.
pub(crate) enum NotIn {
    Refused(Refused),
    /// A page cannot see the status of a refused WebSocket: there it is told in a close frame.
    Token(Unauthorized),
}

impl From<Refused> for NotIn {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<NotIn> for Refused {
    fn from(why: NotIn) -> Self {
        match why {
            NotIn::Refused(refused) => refused,
            NotIn::Token(why) => {
                Self::new(ErrorCode::Unauthorized, format!("a valid token is needed: {why}"))
            }
        }
    }
}

impl IntoResponse for NotIn {
    fn into_response(self) -> Response {
        Refused::from(self).into_response()
    }
}

impl Caller {
    /// A connection does not come about.
    pub(crate) fn refuse(&self, refused: Refused) -> Refused {
        let (user, why) = (self.principal.user.as_deref(), refused.body().message);
        tracing::info!(user, peer = %self.peer, path = self.path, why, "a connection was refused");
        refused
    }

    pub(super) fn must_administer(&self) -> Result<(), Refused> {
        match self.principal.grant.may_administer() {
            true => Ok(()),
            false => Err(Refused::not_found(format_args!("`{}`", self.path))),
        }
    }

    /// The channel of this name, if the caller may subscribe to it.
    pub(super) fn readable(&self, channel: &str) -> Result<Channel, Refused> {
        let channel: Channel = channel.parse()?;
        match self.principal.grant.may_subscribe(&channel) {
            true => Ok(channel),
            false => Err(Refused::not_found(format_args!("`{channel}`"))),
        }
    }

    /// A number from 1 to `most` in the query string.
    pub(super) fn limit(&self, default: usize, most: usize) -> Result<usize, Refused> {
        let Some(text) = self.query.get("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
        let why = || Refused::bad(format_args!("`limit` must be a whole number from 1 to {most}"));
        limit.ok_or_else(why)
    }

    /// A body may take its time: what comes after the end of the token is not accepted any more.
    pub(super) fn must_still_be_valid(&self) -> Result<(), Refused> {
        match self.principal.is_over() {
            false => Ok(()),
            true => Err(NotIn::Token(Unauthorized::Ended).into()),
        }
    }
}

impl FromRequestParts<Arc<AppState>> for Caller {
    type Rejection = NotIn;

    async fn from_request_parts(
        parts: &mut Parts,
        app: &Arc<AppState>,
    ) -> Result<Self, Self::Rejection> {
        let query = Query::of(&parts.uri)?;
        let path = parts.uri.path();
        let peer = *parts.extensions.get::<Peer>().expect("the accept loop says who the peer is");
        let principal = authenticate(app, &parts.headers, &query, peer, path)?;
        let media_type = texts(&parts.headers, CONTENT_TYPE).next().map(str::to_owned);
        Ok(Self { principal, query, peer, media_type, path: path.to_owned() })
    }
}

fn authenticate(
    app: &AppState,
    headers: &HeaderMap,
    query: &Query,
    peer: Peer,
    path: &str,
) -> Result<Arc<Principal>, NotIn> {
    check_page(app, headers).inspect_err(|refused| {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let (host, origin, why) = (header("host"), header("origin"), refused.body().message);
        tracing::info!(%peer, path, host, origin, why, "a request was refused");
    })?;
    match auth::authenticate(app.key.as_ref(), token(headers, query)) {
        Ok(principal) => Ok(Arc::new(principal)),
        Err(check) => {
            tracing::info!(%check, %peer, path, "a token was refused");
            Err(NotIn::Token(check))
        }
    }
}

/// From `Authorization`, the WebSocket subprotocol, or `?token=`.
fn token<'a>(headers: &'a HeaderMap, query: &'a Query) -> Option<&'a str> {
    let bearer = texts(headers, AUTHORIZATION).find_map(|value| {
        // The name of a scheme is written in any case, and any number of spaces follows it.
        let (scheme, token) = value.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_start())
    });
    let offered = || texts(headers, SEC_WEBSOCKET_PROTOCOL).flat_map(|list| list.split(','));
    let subprotocol = || offered().find_map(|one| one.trim().strip_prefix("bearer."));
    bearer.or_else(subprotocol).or_else(|| query.get("token"))
}

/// A client that sends no origin is not a page.
fn check_page(app: &AppState, headers: &HeaderMap) -> Result<(), Refused> {
    // A header that is no text is none that we would accept.
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let (host, has_key) = (text(HOST).unwrap_or_default(), app.key.is_some());
    // A foreign page can have its own name resolve to loopback, and so be of our origin: then the name in
    // `Host` shows it.
    if !has_key && !app.allow_anonymous && !is_loopback(host) {
        let message = "a relay without a key answers to localhost, 127.0.0.1 and [::1] only: \
                       configure a key, or say --allow-anonymous";
        return Err(Refused::new(ErrorCode::Forbidden, message));
    }
    let Some(origin) = text(ORIGIN) else { return Ok(()) };
    check_origin(origin, host, &app.origins, has_key).map_err(|(code, why)| Refused::new(code, why))
}

/// The values of a header that are texts.
fn texts(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// The query string's fields.
#[derive(Debug)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Result<Self, Refused> {
        let query = axum::extract::Query::<HashMap<String, String>>::try_from_uri(uri);
        query.map(|query| Self(query.0)).map_err(|error| {
            Refused::new(ErrorCode::BadRequest, format!("the query string cannot be read: {error}"))
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_wherever_a_client_may_put_it() {
        let find = |given: &[(HeaderName, &str)], uri: &str| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(name, value.parse().unwrap());
            }
            let query = Query::of(&uri.parse().unwrap()).unwrap();
            token(&headers, &query).map(str::to_owned)
        };
        let (auth, protocols) = (AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL);
        for (headers, uri) in [
            (&[(auth.clone(), "Bearer t")][..], "/ws"),
            (&[(auth.clone(), "bearer t")], "/ws"),
            (&[(auth.clone(), "BEARER   t ")], "/ws"),
            (&[(auth.clone(), "Basic dTpw"), (auth.clone(), "Bearer t")], "/ws"),
            (&[(protocols.clone(), "agent-relay.v1, bearer.t")], "/ws"),
            (&[(protocols.clone(), "agent-relay.v1"), (protocols.clone(), "bearer.t")], "/ws"),
            (&[], "/ws?since=start&token=t"),
        ] {
            assert_eq!(find(headers, uri).as_deref(), Some("t"), "{headers:?} {uri}");
        }
        for (headers, uri) in [
            (&[][..], "/ws"),
            (&[(auth.clone(), "Bearer")], "/ws"),
            (&[(auth.clone(), "Bearert")], "/ws"),
            (&[(auth, "Basic t")], "/ws"),
            (&[(protocols, "agent-relay.v1")], "/ws"),
        ] {
            assert_eq!(find(headers, uri), None, "{headers:?} {uri}");
        }
    }
}
