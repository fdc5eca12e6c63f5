/** Records from the microphone without echo cancellation, gain control and noise suppression. */

export class Microphone {
  private recorder?: MediaRecorder;

  get records(): boolean { return this.recorder !== undefined; }

  /** Records until `stop`; calls `onBegin` at the start. Throws an error with a message for the user if there is no microphone. */
  async record(onBegin: () => void): Promise<Blob> {
    let stream: MediaStream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, autoGainControl: false, noiseSuppression: false } });
    } catch {
      throw new Error("The microphone cannot be used. Allow it in the browser, or choose a sound file instead.");
    }
    const recorder = (this.recorder = new MediaRecorder(stream));
    const pieces: Blob[] = [];
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstart = onBegin;
    recorder.start();
    await new Promise((done) => { recorder.onstop = done; });
    stream.getTracks().forEach((track) => track.stop());
    this.recorder = undefined;
    return new Blob(pieces, { type: recorder.mimeType });
  }

  stop(): void { this.recorder?.stop(); }
}
