// What htmx does not do: tabs by arrow keys, marks of what is wrong, the end of a session.
"use strict";

// A stream that is over: the session has ended (the page then shows the sign-in), or the API server refuses.
document.addEventListener("over", () => window.location.reload());
