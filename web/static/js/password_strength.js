// How hard a password is to guess, roughly and honestly: by length and variety, less what is well
// known, repeats itself, or is written elsewhere in the form. The server asks only for its length.
const wellKnown = [
  "password", "passwort", "qwerty", "qwertz", "azerty", "letmein", "welcome", "iloveyou", "admin",
  "monkey", "dragon", "football", "secret", "sunshine", "princess", "master", "abc123", "123456",
];
const words = ["", "Easy to guess", "Could be better: make it longer", "Good", "Very good"];

function withoutKnown(password, others) {
  let left = password.toLowerCase();
  const parts = others.flatMap((other) => other.toLowerCase().split(/[^\p{L}\p{N}]+/u));
  for (const known of [...wellKnown, ...parts.filter((part) => part.length >= 3)]) {
    left = left.replaceAll(known, "*");
  }
  // Runs such as aaaa, 1234 and dcba.
  return left.replace(/(.)\1{2,}/gu, "$1").replace(/[a-z0-9]{3,}/g, (run) => shortened(run));
}

function shortened(run) {
  let kept = run[0];
  for (let at = 1; at < run.length; at += 1) {
    const step = run.charCodeAt(at) - run.charCodeAt(at - 1);
    const before = at > 1 ? run.charCodeAt(at - 1) - run.charCodeAt(at - 2) : 0;
    if (Math.abs(step) !== 1 || step !== before) kept += run[at];
  }
  return kept;
}

export function strengthOf(password, others = []) {
  const left = withoutKnown(password, others);
  const kinds = [/[a-z]/, /[A-Z]/, /[0-9]/, /[^a-zA-Z0-9]/].filter((kind) => kind.test(password));
  const bits = new Set(left).size * 1.5 + left.length * (1.2 + kinds.length * 0.55);
  const score = password.length < 8 || bits < 24 ? 1 : bits < 40 ? 2 : bits < 56 ? 3 : 4;
  return { score, words: password.length < 8 ? "Use at least 8 characters" : words[score] };
}
