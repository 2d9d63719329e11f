// What has been typed and not saved: whoever is about to leave it behind is asked first.
//   const unsaved = new Unsaved(() => editor.isChanged)
//   unsaved.forget()      the page is left because it was saved, or is to be as it was
export class Unsaved {
  constructor(isChanged) {
    this.isChanged = isChanged;
    this.leaving = new AbortController();
    const ask = (event) => {
      if (isChanged()) event.preventDefault();
    };
    addEventListener("beforeunload", ask, { signal: this.leaving.signal });
  }

  forget() {
    this.leaving.abort();
  }
}
