// Ranks documents with one client for Node.js. A request as JSON comes in on the standard input; the
// ranking, or the error that the client reports, goes out on the standard output.

const { CohereClient, CohereClientV2 } = require("cohere-ai");
const { VoyageAIClient } = require("voyageai");
const { createCohere } = require("@ai-sdk/cohere");
const { rerank } = require("ai");

const token = "no-key";
const pairs = (results) => results.map((result) => [result.index, result.relevanceScore]);

const clients = {
  "cohere-ai": async ({ url, query, documents, top }) => {
    const client = new CohereClientV2({ token, environment: url });
    const answer = await client.rerank(
      { model: "any", query, documents, topN: top },
      { maxRetries: 0 },
    );
    return pairs(answer.results);
  },
  "cohere-ai-v1": async ({ url, query, documents, top }) => {
    const client = new CohereClient({ token, environment: url });
    const answer = await client.rerank({ query, documents, topN: top }, { maxRetries: 0 });
    return pairs(answer.results);
  },
  voyageai: async ({ url, query, documents, top }) => {
    const client = new VoyageAIClient({ apiKey: token, environment: `${url}/v1` });
    const answer = await client.rerank(
      { model: "any", query, documents, topK: top },
      { maxRetries: 0 },
    );
    return pairs(answer.data);
  },
  "ai-sdk": async ({ url, query, documents, top }) => {
    const cohere = createCohere({ apiKey: token, baseURL: `${url}/v2` });
    const model = cohere.reranking("any");
    const answer = await rerank({ model, query, documents, topN: top, maxRetries: 0 });
    return answer.ranking.map((result) => [result.originalIndex, result.score]);
  },
};

async function main() {
  let input = "";
  for await (const chunk of process.stdin) input += chunk;
  const request = JSON.parse(input);
  try {
    return { ranking: await clients[request.client](request) };
  } catch (error) {
    const body = error.body ?? error.responseBody ?? "";
    const text = typeof body === "string" ? body : JSON.stringify(body);
    return { status: error.statusCode, error: `${error.message} ${text}` };
  }
}

main().then((answer) => console.log(JSON.stringify(answer)));
