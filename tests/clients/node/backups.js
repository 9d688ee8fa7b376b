const { Session } = require('@yandex-cloud/nodejs-sdk');
const { backupService } = require('@yandex-cloud/nodejs-sdk/mdb-greenplum-v1');

function connect(address, token, rootCerts) {
  const session = new Session({ iamToken: token, ssl: { rootCerts } });
  return session.client(backupService.BackupServiceClient, address);
}

// Makes a call. An error has its `code`, the message as `details`, and from here on the `trailers`, where `x-request-id` is.
async function call(method, request) {
  let trailers;
  try {
    return await method(request, { onTrailer: (received) => { trailers = received; } });
  } catch (error) {
    error.trailers = trailers;
    throw error;
  }
}

function get(service, backupId) {
  return call(service.get, backupService.GetBackupRequest.fromPartial({ backupId }));
}

async function* backups(service, folderId, pageSize = 0) {
  let pageToken = '';
  do {
    const request = backupService.ListBackupsRequest.fromPartial({ folderId, pageSize, pageToken });
    const page = await call(service.list, request);
    yield* page.backups;
    pageToken = page.nextPageToken;
  } while (pageToken);
}

module.exports = { connect, call, get, backups };
