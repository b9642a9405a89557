// What htmx does not do: take a link's code to the sign-in form, and say whether the page is still live.
"use strict";

(() => {
  const signIn = document.getElementById("sign-in");
  if (signIn !== null && location.hash.length > 1) {
    signIn.elements.code.value = location.hash.slice(1);
    // The code is used up by this; it need not stay in the history either.
    history.replaceState(null, "", location.pathname);
    signIn.submit();
    return;
  }

  const mark = document.getElementById("connection");
  const live = document.getElementById("live");
  if (mark === null || live === null) return;
  const words = document.getElementById("connection-words");
  const QUIET_MS = 15000;
  let heardAt = Date.now();

  const say = (isLive, text) => {
    mark.classList.toggle("lost", !isLive);
    document.body.classList.toggle("stale", !isLive);
    if (words.textContent !== text) words.textContent = text;
    mark.hidden = false;
  };
  const since = () => new Date(heardAt).toLocaleTimeString();
  const lost = (status) => {
    if (status === 401 || status === 404) {
      say(false, "Signed out. Run clorefleet dashboard again. As of " + since());
    } else {
      say(false, "No connection. As of " + since());
    }
  };

  words.textContent = "Connecting";
  mark.hidden = false;
  document.addEventListener("htmx:sse:after:message", () => {
    heardAt = Date.now();
    say(true, "Live");
  });
  document.addEventListener("htmx:sse:error", (event) => lost(event.detail.status));
  setInterval(() => {
    if (!document.hidden && Date.now() - heardAt > QUIET_MS) lost(undefined);
  }, 1000);
})();
