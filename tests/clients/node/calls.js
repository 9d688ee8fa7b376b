// Calls the service with the official Node.js client: reads a call from each line of JSON, prints its result as a line of JSON.

const { readFileSync } = require('node:fs');
const { createInterface } = require('node:readline');
const { Session } = require('@yandex-cloud/nodejs-sdk');
const { iamTokenService } = require('@yandex-cloud/nodejs-sdk/iam-v1');
const { backupService } = require('@yandex-cloud/nodejs-sdk/mdb-greenplum-v1');
const { connect, call, get, backups, clusterBackups } = require('./backups');

const [address, caFile] = process.argv.slice(2);
const rootCerts = readFileSync(caFile);

async function result(input) {
  const services = connect(address, input.token, rootCerts);
  switch (input.call) {
    case 'get':
      return [await get(services, input.backup_id)];
    case 'list':
      return all(backups(services, input.folder_id, input.page_size));
    case 'list_cluster':
      return all(clusterBackups(services, input.cluster_id, input.page_size));
    case 'delete':
      return call(services.backups.delete, backupService.DeleteBackupRequest.fromPartial({ backupId: input.backup_id }));
    case 'create token': {
      const iam = new Session({ iamToken: input.token, ssl: { rootCerts } }).client(iamTokenService.IamTokenServiceClient, address);
      return call(iam.create, iamTokenService.CreateIamTokenRequest.fromPartial({ yandexPassportOauthToken: 'x' }));
    }
    default:
      throw new Error(`unknown call: ${input.call}`);
  }
}

async function all(pages) {
  const found = [];
  for await (const backup of pages) found.push(backup);
  return found;
}

function row(backup) {
  const [created, started] = [backup.createdAt, backup.startedAt].map((time) => time.getTime() * 1000);
  const kinds = [backup.type, backup.method, backup.journalSize];
  return [backup.id, backup.folderId, created, backup.sourceClusterId, started, backup.size, ...kinds];
}

async function main() {
  for await (const line of createInterface({ input: process.stdin })) {
    let output;
    try {
      output = { backups: (await result(JSON.parse(line))).map(row) };
    } catch (error) {
      output = { code: error.code ?? null, message: error.details ?? error.message, request_id: error.trailers?.get('x-request-id') ?? '' };
    }
    process.stdout.write(`${JSON.stringify(output)}\n`);
  }
  process.exit();
}

main();
