//! The page at `/`, and the headers that keep it from being framed or made to run anything else.
//!
//! **page** ← [`routes`](super). It never knows what the page shows.

use axum::http::HeaderName;
use axum::http::header::{
    CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::{Html, IntoResponse};
use axum::routing::{MethodRouter, get};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

/// Serves `html` with a policy under which its own inline scripts and styles are all that runs, it talks
/// to this relay alone, and no other page can show it in a frame: a person who answers a question in a
/// frame does not see what they answer.
pub(super) fn page<S: Clone + Send + Sync + 'static>(html: &'static str) -> MethodRouter<S> {
    let headers: [(HeaderName, String); 4] = [
        (CONTENT_SECURITY_POLICY, policy(html)),
        // For browsers that do not know `frame-ancestors`.
        (X_FRAME_OPTIONS, "DENY".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        // The address may hold a token.
        (REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    get(move || async move { (headers, Html(html)).into_response() })
}

/// The Content-Security-Policy (W3C, level 3) of a page without foreign parts.
fn policy(html: &str) -> String {
    format!(
        "default-src 'none'; script-src{}; style-src{}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hashes(html, "script"),
        hashes(html, "style"),
    )
}

/// ` 'sha256-…'` of each inline `element`.
fn hashes(html: &str, element: &str) -> String {
    let (begin, end) = (format!("<{element}"), format!("</{element}>"));
    let bodies = html.split(&begin).skip(1).filter_map(|rest| {
        let (_attributes, body) = rest.split_once('>')?;
        body.split_once(&end).map(|(body, _)| body)
    });
    bodies
        .map(|body| format!(" 'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(body))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::policy;

    #[test]
    fn the_policy_names_every_inline_script_and_style() {
        // Computed with `printf %s 'alert(1)' | openssl dgst -sha256 -binary | base64`, and so on.
        let html = "<style>p{}</style><p>text</p><template><style>b{}</style></template>\
                    <script type=\"module\">alert(1)</script>";
        let policy = policy(html);
        for part in [
            "script-src 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI=';",
            "style-src 'sha256-gG2yISYereRMiG2lMXrbiUgi0Ubw9p7QCeWcroOvy9Y=' 'sha256-7yqHVAesot11p6HczDsgKRipvI5UPgs97z80zNXlans=';",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{part} in {policy}");
        }
    }
}
