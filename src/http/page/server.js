// The server this page came from. The key is a variable and nothing else: it is not stored.

let key = "";

/** The address of a path of this server, whatever path it is below; this file is in a folder of its root. */
export const address = (path) => new URL(`../${path}`, import.meta.url).href;

export const hasKey = () => key !== "";

export const useKey = (text) => {
  key = text.trim();
};

/** Asks the server; every request carries the key once there is one. */
export const ask = (path, options = {}) => {
  const headers = new Headers(options.headers);
  if (key) headers.set("authorization", `Bearer ${key}`);
  return fetch(address(path), { cache: "no-store", ...options, headers });
};

/** The parts of a `Server-Timing` header: names with milliseconds, in the order of the header. */
export const serverTiming = (header) =>
  (header ?? "")
    .split(",")
    .map((part) => {
      const [name, ...parameters] = part.split(";").map((text) => text.trim());
      const duration = parameters.find((text) => text.toLowerCase().startsWith("dur="));
      return { name, milliseconds: Number(duration?.slice(4)) };
    })
    .filter(({ name, milliseconds }) => name && Number.isFinite(milliseconds));
