// <form data-demo-form>: asks for the API key of the demo account, which a browser on the platform's
// own machine gets, and puts it where a key is to be put.
const placeholder = "YOUR_API_KEY";
const ofThisMachine = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;

async function demoKey(form) {
  // By any other name it is refused; so there is no need to ask.
  if (!ofThisMachine.test(location.hostname)) return null;
  const answer = await fetch(form.action, {
    method: "POST",
    body: new URLSearchParams(new FormData(form)),
    headers: { Accept: "application/json" },
  });
  return answer.ok ? (await answer.json()).api_key : null;
}

function show(key) {
  for (const code of document.querySelectorAll("pre")) {
    code.textContent = code.textContent.replaceAll(placeholder, key);
  }
  for (const box of document.querySelectorAll("[data-try-it]")) box.dataset.key = key;
  for (const element of document.querySelectorAll("[data-demo]")) element.hidden = false;
  for (const element of document.querySelectorAll("[data-no-demo]")) element.hidden = true;
}

const key = await demoKey(document.querySelector("[data-demo-form]"));
if (key) show(key);
