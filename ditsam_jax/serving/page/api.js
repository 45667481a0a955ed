// Requests to this service only.

export class Failure extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const TOKEN = 'ditsam_jax token';
const TRIES = 5; // while the service is busy

async function failure(response) {
  let message = `the service answered ${response.status}`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // not JSON: a proxy's own page
  }
  return new Failure(response.status, message, Number(response.headers.get('Retry-After')) || 0);
}

export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });

// Sends requests. `askToken` asks the user for a token; `wait` is called with the time to wait for a busy service, `waited`
// when it has answered after that.
export class Api {
  constructor({ askToken, wait, waited }) {
    Object.assign(this, { askToken, wait, waited });
  }

  async send(path, { method = 'GET', body, accept = 'application/json', signal } = {}) {
    for (let tries = 1; ; tries += 1) {
      const headers = { Accept: accept };
      const token = sessionStorage.getItem(TOKEN);
      if (token) headers.Authorization = `Bearer ${token}`;
      if (typeof body === 'string') headers['Content-Type'] = 'application/json';
      let response;
      try {
        response = await fetch(path, { method, body, headers, signal });
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new Failure(0, 'the service cannot be reached');
      }
      if (response.ok) {
        if (tries > 1) this.waited();
        return response;
      }
      const problem = await failure(response);
      if (problem.status === 401) {
        sessionStorage.setItem(TOKEN, await this.askToken(Boolean(token)));
        tries = 0;
      } else if ([429, 503].includes(problem.status) && tries < TRIES) {
        const seconds = Math.max(1, problem.retryAfter);
        this.wait(problem.message, seconds);
        await pause(seconds, signal);
      } else {
        throw problem;
      }
    }
  }

  async json(path, options) {
    const response = await this.send(path, options);
    return response.json();
  }

  post(path, content, options) {
    return this.json(path, { method: 'POST', body: JSON.stringify(content), ...options });
  }
}
